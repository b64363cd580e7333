"""The weights of the best checkpoint, under a fixed name, and found again after a kill."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small import tiny

sys.path.pop(0)

from hatbus import hookimpl


@pytest.mark.parametrize(
    ("wanted", "kinds"), [(None, ["best"]), (True, ["best", "last"]), (False, [])]
)
def test_the_best_weights_stand_under_a_fixed_name(
    tmp_path: Path, wanted: bool | None, kinds: list[str]
) -> None:
    from safetensors.torch import load_file

    options = {"mode": "max", "monitor_metric_key": "score", "weights_only_export": wanted}
    kept: dict[float, Any] = {}

    class Scores:
        @hookimpl
        def on_epoch_end(self, ctx: Any) -> None:
            score = float([1, 3, 2][ctx.epoch_id])
            kept[score] = ctx.model.weight.detach().clone()
            ctx.log({"score": score})

    tiny(tmp_path, {"scores": Scores()}, **options).fit(num_epochs=3)
    assert sorted(path.name for path in tmp_path.glob("weights-*")) == [
        f"weights-{kind}.safetensors" for kind in kinds
    ]
    if kinds:
        assert load_file(tmp_path / "weights-best.safetensors")["weight"].equal(kept[3.0])


@pytest.mark.parametrize("lost", ["checkpoint-best.json", "weights-best.safetensors"])
def test_a_resume_marks_the_best_where_a_kill_came_before_the_mark(
    tmp_path: Path, lost: str
) -> None:
    class Falls:
        @hookimpl
        def on_epoch_end(self, ctx: Any) -> None:
            ctx.log({"score": -float(ctx.epoch_id)})

    options = {"mode": "max", "monitor_metric_key": "score", "save_hash": False}
    tiny(tmp_path, {"falls": Falls()}, **options).fit(num_epochs=2)
    kept = (tmp_path / lost).read_bytes()
    (tmp_path / lost).unlink()
    tiny(tmp_path, {"falls": Falls()}, **options, resume="auto").fit(num_epochs=3)
    assert (tmp_path / lost).read_bytes() == kept
    assert b"epoch-0001" in (tmp_path / "checkpoint-best.json").read_bytes()
