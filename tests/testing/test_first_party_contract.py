"""Every first-party plugin keeps the contract that hatbus.testing holds everybody to."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hatbus import callbacks, hookimpl, plugin
from hatbus.discovery.first_party import FIRST_PARTY
from hatbus.testing import PluginContract, TinyNet, batches, tiny_parts
from hatbus.testing.two_processes import run_both

pytest_plugins = ["hatbus.testing"]
torch.set_num_threads(1)


class BnNet(nn.Module):
    """A net with a batch norm to freeze or fuse: (n, 3) to (n, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.head = nn.Linear(6, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(inputs))


def qat_net() -> nn.Module:
    """The tiny net whose outputs are as if they were int8; a switch is read in every step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(
            TinyNet(), torch.ao.quantization.get_default_qat_qconfig("x86").activation()
        )


class TwoNets(nn.Module):
    """A student and its teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = TinyNet(), TinyNet()
        self.teacher.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.teacher(inputs)
        return self.student(inputs)


def parts_of(net: Callable[[], nn.Module]) -> Callable[[Any], dict[str, Any]]:
    def build(self: Any) -> dict[str, Any]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return {**tiny_parts(), "model": model, "optimizer": optimizer}

    return build


@plugin(stage="monitor")
class EveryStep:
    """Publishes the loss of every step, still on its device."""

    @hookimpl
    def on_step_end(self, ctx: Any, losses: Mapping[str, torch.Tensor]) -> None:
        if ctx.exception is None:
            ctx.log({f"train/{name}": loss.detach().clone() for name, loss in losses.items()})


def update(metrics: Any, batch: Any, model_outs: torch.Tensor) -> None:
    for metric in metrics:
        metric.update(model_outs)


def torch_step(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)


def halves_of(model: nn.Module, names: str = "body") -> list[Any]:
    return [(names, 0.5)]


def csv_rows(self: Any, plugin: Any) -> list[dict[str, str]]:
    """The log less its times: a resumed run's is as if there had been no break."""
    with (self.folder / "log.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def json_rows(self: Any, plugin: Any) -> list[dict[str, Any]]:
    rows = map(json.loads, (self.folder / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


LR: dict[str, Any] = {}
TIMES = ("*time*", "*speed*", "*/s", "*per_s*", "*second*", "*eta*", "*duration*", "*wait*")
LOGGED = {"companions": lambda self: {"every_step": EveryStep()}}
BN = {"build": parts_of(BnNet), "same_when_accumulated": False}
QAT = {"build": parts_of(qat_net), "same_when_accumulated": False, "reads_every": 1}
WATCHES = {"observer": True}

SAID: dict[str, tuple[Callable[[Any], dict[str, Any]], dict[str, Any]]] = {
    "cos_lr": (lambda c: {"warmup_len": 3}, LR),
    "cosine_annealing_lr": (lambda c: {"warmup_len": 3}, LR),
    "cyclic_lr": (lambda c: {}, LR),
    "noam_lr": (lambda c: {"warmup_step": 3}, LR),
    "one_cycle_lr": (lambda c: {"lr_max": 0.1}, LR),
    "poly_lr": (lambda c: {"max_update": 10}, LR),
    "step_decay_lr": (lambda c: {"lr_decay_id": [1, 2]}, LR),
    "torch_lr": (lambda c: {"scheduler": torch_step}, LR),
    "checkpoint": (lambda c: {"save_dir": str(c.folder / "saved")}, WATCHES),
    "csv_log": (
        lambda c: {"path": c.folder / "log.csv"}, {**WATCHES, **LOGGED, "outcome": csv_rows},
    ),
    "jsonl_log": (
        lambda c: {"path": c.folder / "log.jsonl"}, {**WATCHES, **LOGGED, "outcome": json_rows},
    ),
    "tensorboard": (  # reads at once only what lies on the host; on a device tests/gpu counts
        lambda c: {"save_dir": str(c.folder / "board")}, {**WATCHES, **LOGGED, "reads_every": 1},
    ),
    "early_stopping": (lambda c: {"monitor": "train/loss", "patience": 9}, {**WATCHES, **LOGGED}),
    "ema": (
        lambda c: {},
        {**WATCHES, "make_another": lambda c: callbacks.ExponentialMovingAverage(view="other")},
    ),
    "mean_teacher": (lambda c: {}, {"build": parts_of(TwoNets)}),
    "freeze_bn_statistics": (lambda c: {}, BN),
    "freeze_observers": (lambda c: {"step_or_epoch": 5, "update_by": "step"}, QAT),
    "freeze_module": (
        lambda c: {"modules": [["stem"]], "step_or_epoch": [5], "update_by": "step"}, BN,
    ),
    "fuse_bn": (
        lambda c: {"modules": [["stem"]], "step_or_epoch": [5], "update_by": "step"}, BN,
    ),
    "closure": (lambda c: {}, {}),
    "grad_clip": (lambda c: {"max_norm": 0.1}, {}),
    "grad_scale": (lambda c: {"module_and_scale": halves_of(TinyNet())}, {}),
    "grad_monitor": (lambda c: {"log_freq": 4}, {**WATCHES, "reads_every": 4}),
    "metric_updater": (
        lambda c: {"metric_update_func": update, "metrics": [Mean()], "step_log_freq": 4},
        {**WATCHES, "reads_every": 4},  # it writes a line then, where lines are shown
    ),
    "nan_guard": (lambda c: {"check_every": 4}, {**WATCHES, "reads_every": 4}),
    "progress": (lambda c: {"display": "plain"}, {**WATCHES, **LOGGED}),
    "stats_monitor": (lambda c: {"log_freq": 4}, {**WATCHES, "volatile": TIMES}),
    "save_traced": (
        lambda c: {"save_dir": str(c.folder / "traced"), "trace_inputs": (torch.ones(2, 3),)},
        WATCHES,
    ),
    "predictions": (lambda c: {"save_dir": str(c.folder / "predicted")}, WATCHES),
    "validation": (
        lambda c: {"data_loader": batches(2, seed=1), "val_interval": 1},
        {**WATCHES, "volatile": TIMES},
    ),
    "mean_teacher_validation": (
        lambda c: {"data_loader": batches(2, seed=1), "inference_on": "teacher"},
        {**WATCHES, "build": parts_of(TwoNets), "volatile": TIMES},
    ),
}  # fmt: skip


class Mean:
    """A metric of this test's own."""

    name = "mean"

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sum, self.count = torch.zeros(()), 0

    def update(self, values: torch.Tensor) -> None:
        self.sum, self.count = self.sum + values.detach().mean(), self.count + 1

    def compute(self) -> torch.Tensor:
        return self.sum / max(1, self.count)

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self.sum, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sum, self.count = state["sum"], state["count"]


def contract_of(name: str) -> type[PluginContract]:
    """The contract of one plugin; all together run on two processes below."""
    options, said = SAID[name]
    cls = getattr(callbacks, FIRST_PARTY[name].class_name)
    title = f"Test_{name}"
    own = {"make": lambda self: cls(**options(self)), "test_works_on_two_processes": None}
    return type(title, (PluginContract,), {"__module__": __name__, **own, **said})


HOSTS = {"lightning_callback", "orchard_hooks", "transformers_callback"}
TRACKERS = {"mlflow", "optuna_pruning", "trackio", "wandb"}
ELSEWHERE = HOSTS | TRACKERS
"""They need other packages: tests of theirs try them where those are installed (tox.ini)."""
HERE = [name for name in FIRST_PARTY if name not in ELSEWHERE]

for _name in HERE:
    globals()[f"Test_{_name}"] = contract_of(_name)


def test_every_first_party_plugin_is_under_contract() -> None:
    assert set(SAID) == set(HERE)
    assert {name for name in globals() if name.startswith("Test_")} == {
        f"Test_{name}" for name in HERE
    }


def test_every_first_party_plugin_works_on_two_processes(tmp_path: Path) -> None:
    assert run_both(tmp_path, *(globals()[f"Test_{name}"] for name in HERE)) == ""
    assert len(list(tmp_path.glob("*.pt"))) == 2 * len(HERE)


@pytest.mark.parametrize("name", FIRST_PARTY)
def test_class_of_a_reserved_name_is_the_one_installed_under_it(name: str) -> None:
    from hatbus.discovery.entry_points import lookup

    assert lookup(name).load() is getattr(callbacks, FIRST_PARTY[name].class_name)
