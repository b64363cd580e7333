"""A small run with every plugin that can be on, and the same as a bare loop, to be compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from hatbus import callbacks
from hatbus.discovery.first_party import FIRST_PARTY

EPOCHS = 3
FREE = {name for name in FIRST_PARTY if name.endswith("_lr")} - {"cos_lr"}  # one of them at a time
ELSEWHERE = {"mlflow", "trackio", "wandb", "optuna_pruning"}  # need other packages
HOSTS = {"lightning_callback", "orchard_hooks", "transformers_callback"}  # other people's loops
NOT_IN_STEPS = {"save_traced", "predictions"}  # after the run
OTHER_MODELS = {"fuse_bn", "freeze_observers", "mean_teacher", "mean_teacher_validation"}
OTHER_STEPS = {"closure"}


class Net(nn.Module):
    """A frozen stem, a batch norm that keeps its statistics, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Linear(3, 8), nn.BatchNorm1d(8)
        self.rest = nn.Sequential(nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.rest(self.norm(self.stem(inputs)))


def loss_of(outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outs, target) + 0.01 * outs.square().mean()


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Four batches, the last one smaller."""
    chance = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 3, generator=chance), torch.arange(n) % 2) for n in (6, 6, 6, 3)]


def every_plugin(folder: Path) -> dict[str, Any]:
    """All that can be on together."""
    options: dict[str, dict[str, Any]] = {
        "checkpoint": {"save_dir": str(folder / "c"), "save_interval": 3, "interval_by": "step"},
        "cos_lr": {},
        "csv_log": {"path": str(folder / "rows.csv")},
        "early_stopping": {"monitor": "val/loss", "patience": 9},
        "ema": {"decay": 0.5},
        "freeze_bn_statistics": {},
        "freeze_module": {
            "modules": [["stem"]],
            "step_or_epoch": [0],
            "update_by": "epoch",
        },
        "grad_clip": {"max_norm": 1.0, "log_interval": 1},
        "grad_monitor": {"log_freq": 2, "weights": True},
        "grad_scale": {"module_and_scale": [("rest", 0.5)]},
        "jsonl_log": {"path": str(folder / "rows.jsonl")},
        "metric_updater": {"metrics": ["loss", "accuracy"]},
        "nan_guard": {},
        "progress": {"display": "plain"},
        "stats_monitor": {},
        "tensorboard": {"save_dir": str(folder / "tb")},
        "validation": {"data_loader": data()},
    }
    rest = FREE | ELSEWHERE | HOSTS | NOT_IN_STEPS | OTHER_MODELS | OTHER_STEPS
    assert options.keys() == FIRST_PARTY.keys() - rest, "a new plugin belongs in here, or in a list"
    return {name: made(name, chosen) for name, chosen in options.items()}


class Pair(Net):
    """A student that is trained, and its teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = Net(), Net()
        self.teacher.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.teacher(inputs)
        return self.student(inputs)


class Imitating(Net):
    """A net whose outputs are as if they were int8."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.int8 = torch.ao.quantization.get_default_qat_qconfig("x86").activation()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.int8(super().forward(inputs))


class Convolving(Net):
    """A net with a batch norm that can be folded into the convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten()
        )


def other_plugins(folder: Path) -> dict[str, tuple[type[nn.Module], dict[str, Any]]]:
    """Those that cannot be on with all the others: a model to have each on alone, and its options.

    ``fuse_bn`` folds before the first step here; when it folds later, the model is another one.
    """
    options: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
        "closure": (Net, {}),
        "cosine_annealing_lr": (Net, {}),
        "cyclic_lr": (Net, {}),
        "freeze_observers": (Imitating, {"step_or_epoch": 5, "update_by": "step"}),
        "fuse_bn": (
            Convolving,
            {"modules": [["stem"]], "step_or_epoch": [0], "update_by": "step"},
        ),
        "mean_teacher": (Pair, {}),
        "mean_teacher_validation": (Pair, {"data_loader": data(), "inference_on": "teacher"}),
        "noam_lr": (Net, {"warmup_step": 3}),
        "one_cycle_lr": (Net, {"lr_max": 0.1}),
        "poly_lr": (Net, {"max_update": 9}),
        "predictions": (Net, {"save_dir": str(folder / "predicted")}),
        "save_traced": (
            Net,
            {"save_dir": str(folder / "traced"), "trace_inputs": (torch.ones(2, 3),)},
        ),
        "step_decay_lr": (Net, {"lr_decay_id": [1, 2]}),
        "torch_lr": (Net, {"scheduler": partial(StepLR, step_size=3)}),
    }
    rest = FREE | NOT_IN_STEPS | OTHER_MODELS | OTHER_STEPS
    assert options.keys() == rest, "a new plugin belongs in here, or with all the others"
    return options


def made(name: str, options: dict[str, Any]) -> Any:
    """A plugin of hatbus's own."""
    return getattr(callbacks, FIRST_PARTY[name].class_name)(**options)


def bare_steps(compiled: Callable[[Any], Any], kind: type[nn.Module]) -> None:
    """A model trained as everybody would write it, and nothing else."""
    model = kind()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    called, loss = compiled(model), compiled(loss_of)
    for _ in range(EPOCHS):
        for inputs, target in data():
            optimizer.zero_grad()
            loss(called(inputs), target).backward()
            optimizer.step()


def bare(compiled: Callable[[Any], Any]) -> nn.Module:
    """The same run as everybody would write it."""
    model = Net()
    model.stem.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    called, loss = compiled(model), compiled(loss_of)
    for _ in range(EPOCHS):
        model.train()
        model.norm.eval()
        for inputs, target in data():
            optimizer.zero_grad()
            loss(called(inputs), target).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for inputs, target in data():
                loss_of(model(inputs), target)
    return model
