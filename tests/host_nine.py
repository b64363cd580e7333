"""The nine plugins that run in every loop, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hatbus import Context, hookimpl, plugin


@plugin(stage="report")
class Stranger:
    """What somebody wrote who never heard of hosts: a loss, a wrapper, a count."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.steps = 0

    @hookimpl(wrapper=True)
    def run_step(self) -> Any:
        result = yield
        self.steps += 1
        return result

    @hookimpl
    def on_step_end(self, ctx: Context, losses: dict[str, torch.Tensor]) -> None:
        value = sum(loss.item() for loss in losses.values())
        self.losses.append(value)
        ctx.log({"stranger/loss": value})

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.steps = list(state["losses"]), state["steps"]


def nine(folder: Path) -> dict[str, object]:
    """The nine plugins that all loops run with."""
    from hatbus.callbacks import (
        ExponentialMovingAverage,
        FreezeModule,
        GradClip,
        GradMonitor,
        JsonlLog,
        NanGuard,
        StatsMonitor,
        TensorBoard,
    )

    return {
        "ema": ExponentialMovingAverage(0.9, decay_base=0),
        "grad_clip": GradClip(max_norm=0.5, log_interval=1),
        "nan_guard": NanGuard(),
        "grad_monitor": GradMonitor(log_freq=2, weights=True),
        "stats_monitor": StatsMonitor(log_freq=4),
        "tensorboard": TensorBoard(str(folder / "tb"), describe=False),
        "jsonl_log": JsonlLog(folder / "log.jsonl"),
        "freeze_module": FreezeModule([["body.0"]], [5], "step"),
        "stranger": Stranger(),
    }


def is_comparable(name: str) -> bool:
    """Whether a plugin published this; not what a clock said, nor what hatbus's own Trainer did."""
    return not name.startswith("time") and name != "train/loss"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl log."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = [{name: v for name, v in row.items() if is_comparable(name)} for row in rows]
    return [row for row in found if row.keys() - {"step", "epoch", "event"}]


def curves_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in a folder of TensorBoard's."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(one.step, one.value) for one in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
        if is_comparable(tag)
    }


def what_is_left(model: nn.Module, plugins: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Everything that two runs have to have in common."""
    return {
        "rows": rows_of(folder / "log.jsonl"),
        "curves": curves_of(folder / "tb"),
        "weights": {name: one.clone() for name, one in model.state_dict().items()},
        "averages": plugins["ema"].averages(),
        "losses": plugins["stranger"].losses,
        "steps": plugins["stranger"].steps,
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
    }


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, Mapping):
        assert list(one) == list(other), where
        for name, value in one.items():
            assert_same(value, other[name], f"{where} {name}")
    else:
        assert one == other, where
