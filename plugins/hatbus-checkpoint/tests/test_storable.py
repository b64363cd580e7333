"""A model or optimizer that cannot be saved or resumed is refused before the first step."""

from __future__ import annotations

import enum
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from small import DATA, tiny

sys.path.pop(0)

from hatbus import Trainer, hookimpl
from hatbus.errors import SaveError
from hatbus_checkpoint import Checkpoint
from hatbus_checkpoint.folder import CheckpointFolder
from hatbus_checkpoint.restore import Saved


def with_buffers(**buffers: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    for name, value in buffers.items():
        model.register_buffer(name, value)
    return model


@pytest.mark.parametrize(
    ("buffer", "what"),
    [
        (lambda: torch.eye(3).to_sparse(), r"cannot be saved: tensor 'odd' is torch.sparse_coo; "),
        (lambda: torch.ones(1, 3).expand(4, 3), r"elements of tensor 'odd' are one .* \(4, 3\)"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "is quantized"),
    ],
    ids=["sparse", "expanded", "quantized"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per:UserWarning")
def test_a_tensor_that_cannot_be_stored_or_loaded_is_named_before_the_first_step(
    tmp_path: Path, buffer: Callable[[], torch.Tensor], what: str
) -> None:
    trainer = tiny(tmp_path, model=with_buffers(odd=buffer()))
    with pytest.raises(SaveError, match=what):
        trainer.fit(num_epochs=1)
    assert trainer.ctx.position.global_step == 0


def kernels() -> dict[str, torch.Tensor]:
    kernel = torch.tensor([1 + 2j, 3 - 4j])
    return {
        "kernel": kernel,
        "conjugate": kernel.conj(),
        "imaginary": kernel.conj().imag,
        "wide": kernel.to(torch.complex128),
        "column": torch.randn(1, 5)[:, 0],
        "small": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fnuz),
    }


def test_buffers_of_odd_kinds_go_on_as_they_are(tmp_path: Path) -> None:
    whole = tiny(tmp_path / "a", model=with_buffers(**kernels()))
    whole.fit(num_epochs=1)
    again = tiny(tmp_path / "a", model=with_buffers(**kernels()), resume="auto")
    for buffer in list(again.ctx.model.buffers())[3:]:
        buffer.zero_()
    again.ctx.model.kernel.zero_()
    again.fit(num_epochs=2)
    before, after = whole.ctx.model.state_dict(), again.ctx.model.state_dict()
    for name in before.keys() - {"weight", "bias"}:
        assert before[name].tolist() == after[name].tolist(), name


@pytest.mark.parametrize("options", [{}, {"incremental": True}, {"async_save": True}])
def test_what_was_saved_can_still_be_resized_in_place(
    options: dict[str, Any], tmp_path: Path
) -> None:
    class Queue(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.resize_(len(self.seen) + 1)[-1] = len(self.seen)
            return super().forward(x)

    model = Queue(3, 1)
    model.register_buffer("seen", torch.zeros(0))
    saves = Checkpoint(str(tmp_path), save_interval=1, interval_by="step", **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Trainer(model, optimizer, DATA, nn.functional.mse_loss, [saves]).fit(num_steps=3)
    for steps in (1, 2, 3):
        (entry,) = [
            entry
            for entry in CheckpointFolder(tmp_path).entries()
            if entry.manifest["progress"]["global_step"] == steps
        ]
        assert Saved(entry).model()["seen"].tolist() == list(map(float, range(steps)))


def test_a_tensor_of_one_element_with_a_stride_of_its_own_is_saved(tmp_path: Path) -> None:
    class LastScore:
        def __init__(self) -> None:
            self.last = torch.zeros(1)

        @hookimpl
        def on_batch_end(self, model_outs: torch.Tensor) -> None:
            self.last = model_outs.detach()[:, 0]

        def state_dict(self) -> dict[str, Any]:
            return {"last": self.last}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.last = state["last"]

    data = [(torch.ones(size, 3), torch.ones(size, 2)) for size in (2, 2, 1)]
    score = LastScore()
    tiny(tmp_path, {"score": score}, model=nn.Linear(3, 2), data=data).fit(num_epochs=1)
    assert score.last.stride() == (2,)
    entry = CheckpointFolder(tmp_path).latest()
    assert entry is not None
    assert Saved(entry).plugins()["score"]["last"].equal(score.last)


class Bare:
    """Two optimizers behind one object."""

    def __init__(self, model: nn.Module) -> None:
        self.parts = [torch.optim.Adam([model.weight]), torch.optim.SGD([model.bias], lr=0.1)]
        self.defaults = self.parts[0].defaults
        self.state: dict[Any, Any] = {}

    @property
    def param_groups(self) -> list[Any]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()


class Both(Bare):
    """The same with a state."""

    def state_dict(self) -> Any:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Any) -> None:
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def fitted(path: Path, make: Callable[[nn.Module], Any], epochs: int) -> Trainer:
    model = with_buffers()
    listed = [Checkpoint(str(path), resume="auto", save_interval=1, interval_by="step")]
    trainer = Trainer(model, make(model), DATA, nn.functional.mse_loss, listed)
    trainer.fit(num_epochs=epochs)
    return trainer


def test_two_optimizers_behind_one_object_go_on_when_it_has_a_state(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "a", Both, 3).ctx.model
    fitted(tmp_path / "b", Both, 1)
    fitted(tmp_path / "b", Both, 2)
    assert fitted(tmp_path / "b", Both, 3).ctx.model.weight.equal(whole.weight)


def test_an_optimizer_without_a_state_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="optimizer Bare cannot be saved: it has no state_dict and"):
        fitted(tmp_path, Bare, 1)


def test_an_option_that_cannot_be_stored_is_refused_before_the_first_step(tmp_path: Path) -> None:
    def make(model: nn.Module) -> Any:
        group = {"params": model.parameters(), "rule": random.Random(0)}
        return torch.optim.SGD([group], lr=0.1)

    with pytest.raises(SaveError) as caught:
        fitted(tmp_path, make, 1)
    assert "optimizer SGD cannot be saved: state at 'groups/0/rule' is a" in str(caught.value)
    assert "on_loop_begin" in caught.value.__notes__[0]


def test_an_option_that_is_no_data_stays_as_it_is_built(tmp_path: Path) -> None:
    class Rule(enum.IntEnum):
        SIGN = 1

    def make(model: nn.Module) -> Any:
        group = {"params": model.parameters(), "rule": Rule.SIGN, "scale": abs, "kind": Rule}
        return torch.optim.SGD([group], lr=0.1, momentum=0.9)

    fitted(tmp_path, make, 1)
    group = fitted(tmp_path, make, 2).ctx.optimizer.param_groups[0]
    assert (group["rule"], group["scale"], group["kind"]) == (Rule.SIGN, abs, Rule)
    assert type(group["rule"]) is Rule


def test_a_state_that_cannot_be_stored_is_refused_after_the_first_update(tmp_path: Path) -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            super().step()
            self.state[self.param_groups[0]["params"][0]]["moment"] = torch.ones(2).to_sparse()

    def make(model: nn.Module) -> Any:
        return Odd(model.parameters(), lr=0.1)

    with pytest.raises(SaveError, match="optimizer Odd cannot be saved: tensor 'state/weight/mom"):
        fitted(tmp_path, make, 1)
    assert not CheckpointFolder(tmp_path).entries()
