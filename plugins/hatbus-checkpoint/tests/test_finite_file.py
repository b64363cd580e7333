"""A checkpoint with NaN weights, as older versions wrote them, is none that a run goes on from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hatbus.errors import CheckpointError, NonFiniteError
from hatbus_checkpoint.finite_file import first_bad
from hatbus_checkpoint.folder import CheckpointFolder, entry_of
from hatbus_checkpoint.listing import fault_of, one_of

sys.path.insert(0, str(Path(__file__).parent))
from small import names, tiny

sys.path.pop(0)

BAD = "its parameter 'bias' is not finite: the run had gone wrong"


class Spoils:
    """A loss with a NaN gradient in some steps, itself finite."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.count = steps, 0

    def __call__(self, outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        zero = torch.sqrt((outs - outs.detach()).square().sum())
        self.count += 1
        return (outs - target).square().mean() + (zero if self.count in self.steps else 0)


def of_an_older_version(path: Path, *, steps: int, spoilt: int, **options: Any) -> None:
    """A run without the look at its weights; one step in them makes them NaN."""
    trainer = tiny(path, save_interval=1, interval_by="step", **options)
    trainer.bus.members["core.batch_processor"].plugin.loss = Spoils(spoilt)  # type: ignore[attr-defined]  # the core's
    for part in ("core.finite_weights", "core.finite_loss"):
        trainer.bus.unregister(part)
    trainer.fit(num_steps=steps)


def test_a_resume_goes_on_from_the_newest_finite_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of_an_older_version(tmp_path, steps=4, spoilt=3)
    ctx = tiny(tmp_path, resume="auto").fit(num_steps=5)
    assert caplog.text.count(f"is passed over: {BAD}") == 2
    whole = tiny(tmp_path / "whole").fit(num_steps=5)
    assert torch.equal(ctx.model.weight, whole.model.weight)


def test_what_is_not_finite_is_said_by_verify_and_refused_by_name(tmp_path: Path) -> None:
    of_an_older_version(tmp_path, steps=3, spoilt=3)
    newest, *others = CheckpointFolder(tmp_path).entries()
    assert [fault_of(one) for one in (newest, *others)] == [BAD, "", ""]
    assert one_of(tmp_path, None) == others[0]
    with pytest.raises(CheckpointError, match="cannot be used: its parameter 'bias'"):
        tiny(tmp_path, resume=str(newest.path)).fit(num_steps=4)


def test_a_folder_without_a_finite_checkpoint_is_an_error(tmp_path: Path) -> None:
    of_an_older_version(tmp_path, steps=1, spoilt=1)
    with pytest.raises(CheckpointError, match=rf"none of the 1 checkpoints .* {BAD}"):
        tiny(tmp_path, resume="auto").fit(num_steps=4)


def test_retention_never_takes_the_last_finite_checkpoint(tmp_path: Path) -> None:
    options = {"save_interval": 1, "interval_by": "step", "keep_last": 2}
    for _ in range(3):
        trainer = tiny(tmp_path, **options, resume="auto")
        trainer.bus.members["core.batch_processor"].plugin.loss = Spoils(3)  # type: ignore[attr-defined]  # the core's
        with pytest.raises(NonFiniteError, match="left parameter 'weight'"):
            trainer.fit(num_steps=9)
        assert len(names(tmp_path)) == 2
        assert not any(map(fault_of, CheckpointFolder(tmp_path).entries()))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
)
@pytest.mark.parametrize("bad", [None, torch.nan, torch.inf, -torch.inf])
def test_every_kind_of_weight_is_read(tmp_path: Path, dtype: torch.dtype, bad: Any) -> None:
    class Large(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 1)
            self.wide = nn.Parameter(torch.full((1100, 1000), 6e4, dtype=dtype))
            self.register_buffer("mask", torch.full((3,), -torch.inf))

    model = Large()
    if bad is not None:
        model.wide.data[1099, 998] = bad
    trainer = tiny(tmp_path, model=model)
    trainer.bus.unregister("core.finite_weights")
    trainer.fit(num_steps=1)
    (entry,) = CheckpointFolder(tmp_path).entries()
    assert entry.manifest["finite"] is False
    assert first_bad(entry.path, entry.manifest) == ("" if bad is None else "wide")


def test_weights_that_were_looked_at_when_they_were_saved_are_not_looked_at_again(
    tmp_path: Path,
) -> None:
    tiny(tmp_path).fit(num_steps=1)
    (entry,) = CheckpointFolder(tmp_path).entries()
    assert entry.manifest["finite"] is True
    assert entry_of(entry.path).manifest["finite"] is True
