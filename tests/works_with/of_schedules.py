"""Pairs with learning-rate schedules, through ``torch_lr``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import lr_scheduler

from hatbus.callbacks import TorchLr, Validation
from works_with.pair import Pair
from works_with.small import EPOCHS, STEPS, batches

KIND = "Schedules"
TOTAL = STEPS * EPOCHS


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def stepped(scheduler: Any, arguments: Any = None, **options: Any) -> Callable[[Path], Any]:
    """A run with this schedule; one that follows the validation's loss gets it."""

    def parts(_: Path) -> dict[str, Any]:
        plugins: dict[str, Any] = {"lr": TorchLr(scheduler, arguments, **options)}
        if "metric" in options:
            plugins = {"validation": Validation(batches(2)), **plugins}
        return {"make": sgd, "plugins": plugins}

    return parts


BY_NAME: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 4},
    "MultiStepLR": {"milestones": [3, 8]},
    "ConstantLR": {"total_iters": 5},
    "LinearLR": {"total_iters": 12},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 7},
    "PolynomialLR": {"total_iters": 12, "power": 2.0},
    "CosineAnnealingWarmRestarts": {"T_0": 5, "T_mult": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4, "mode": "exp_range"},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": TOTAL},
}
FOLLOWING = {"patience": 0, "threshold": 10.0, "threshold_mode": "abs"}


def sequential(optimizer: Any) -> Any:
    warmup = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    rest = lr_scheduler.CosineAnnealingLR(optimizer, 10)
    return lr_scheduler.SequentialLR(optimizer, [warmup, rest], milestones=[4])


def chained(optimizer: Any) -> Any:
    first = lr_scheduler.ConstantLR(optimizer, 0.1, total_iters=5)
    return lr_scheduler.ChainedScheduler([first, lr_scheduler.ExponentialLR(optimizer, 0.9)])


def lambdas(optimizer: Any) -> Any:
    return lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def multiplied(optimizer: Any) -> Any:
    return lr_scheduler.MultiplicativeLR(optimizer, lambda step: 0.95)


def averaged(optimizer: Any) -> Any:
    return torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=6)


def plateau(optimizer: Any) -> Any:
    return lr_scheduler.ReduceLROnPlateau(optimizer, **FOLLOWING)


class OwnPlateau(lr_scheduler.ReduceLROnPlateau):
    """A subclass of torch's."""


def tensor_lr(_: Path) -> dict[str, Any]:
    validation = Validation(batches(2))
    follow = TorchLr("ReduceLROnPlateau", FOLLOWING, update_by="epoch", metric="val/loss")
    return {
        "make": lambda m: torch.optim.AdamW(m.parameters(), lr=torch.tensor(0.1), fused=True),
        "plugins": {"validation": validation, "lr": follow},
    }


def of_torch() -> list[Pair]:
    """Every scheduler of torch."""
    follows = {"update_by": "epoch", "metric": "val/loss"}
    made: dict[str, Any] = {
        **{name: stepped(name, more) for name, more in BY_NAME.items()},
        "StepLR by epoch": stepped("StepLR", {"step_size": 1}, update_by="epoch"),
        "SequentialLR": stepped(sequential),
        "ChainedScheduler": stepped(chained),
        "LambdaLR": stepped(lambdas),
        "MultiplicativeLR": stepped(multiplied),
        "SWALR": stepped(averaged),
        "ReduceLROnPlateau": stepped("ReduceLROnPlateau", FOLLOWING, **follows),
        "ReduceLROnPlateau from a function": stepped(plateau, **follows),
        "a subclass of ReduceLROnPlateau": stepped(OwnPlateau, FOLLOWING, **follows),
        "ReduceLROnPlateau over a tensor as lr": tensor_lr,
    }
    short = stepped("OneCycleLR", {"max_lr": 0.1, "total_steps": TOTAL - 3})
    return [
        *(Pair(KIND, "torch", name, parts) for name, parts in made.items()),
        Pair(
            KIND,
            "torch",
            "OneCycleLR shorter than the run",
            short,
            note="torch raises only past its last step, and jumps up before",
            refused="OneCycleLR",
        ),
    ]


def of_transformers() -> list[Pair]:
    """Those that Transformers' trainer offers."""

    def make(name: str, *given: Any, **more: Any) -> Callable[[Any], Any]:
        def made(optimizer: Any) -> Any:
            from transformers import optimization

            return getattr(optimization, f"get_{name}")(optimizer, *given, **more)

        return made

    def greedy(optimizer: Any) -> Any:
        from transformers.optimization import get_greedy_schedule

        return get_greedy_schedule(optimizer)

    warm, both = (3,), (3, TOTAL)
    made = {
        "constant_schedule": (),
        "constant_schedule_with_warmup": warm,
        "linear_schedule_with_warmup": both,
        "cosine_schedule_with_warmup": both,
        "cosine_with_hard_restarts_schedule_with_warmup": (*both, 2),
        "polynomial_decay_schedule_with_warmup": both,
        "inverse_sqrt_schedule": warm,
        "wsd_schedule": (3, 5, 6),
    }
    minimum = make("cosine_with_min_lr_schedule_with_warmup", *both, min_lr=1e-4)
    follow = make("reduce_on_plateau_schedule", **FOLLOWING)
    return [
        *(
            Pair(KIND, "transformers", f"get_{name}", stepped(make(name, *given)))
            for name, given in made.items()
        ),
        Pair(KIND, "transformers", "get_cosine_with_min_lr_schedule_with_warmup", stepped(minimum)),
        Pair(
            KIND,
            "transformers",
            "get_reduce_on_plateau_schedule",
            stepped(follow, update_by="epoch", metric="val/loss"),
        ),
        Pair(
            KIND,
            "transformers",
            "get_greedy_schedule",
            stepped(greedy, update_by="epoch", metric="val/loss"),
        ),
    ]


TIMM: dict[str, dict[str, Any]] = {
    "CosineLRScheduler": {"t_initial": 12, "warmup_t": 3, "warmup_lr_init": 0.001},
    "TanhLRScheduler": {"t_initial": 12},
    "StepLRScheduler": {"decay_t": 4, "noise_range_t": 6, "noise_pct": 0.5},
    "MultiStepLRScheduler": {"decay_t": [3, 8]},
    "PolyLRScheduler": {"t_initial": 12},
    "WSDLRScheduler": {"t_initial": 18, "decay_t": 6},
    "PlateauLRScheduler": {"patience_t": 0, "threshold": 10.0},
}


def of_timm() -> list[Pair]:
    """timm's own, by epoch as its script steps them, and by update."""

    def make(name: str, **more: Any) -> Callable[[Any], Any]:
        def made(optimizer: Any) -> Any:
            import timm.scheduler

            return getattr(timm.scheduler, name)(optimizer, **TIMM[name], **more)

        return made

    by_epoch = stepped(make("StepLRScheduler"), update_by="epoch")
    plateau = stepped(make("PlateauLRScheduler"), update_by="epoch", metric="val/loss")
    return [
        *(
            Pair(KIND, "timm", name, stepped(make(name, t_in_epochs=False)))
            for name in TIMM
            if name != "PlateauLRScheduler"
        ),
        Pair(KIND, "timm", "StepLRScheduler by epoch", by_epoch),
        Pair(
            KIND,
            "timm",
            "PlateauLRScheduler",
            plateau,
            note="no checkpoint can hold its state: use torch's ReduceLROnPlateau",
            refused="is timm's plateau, whose state no checkpoint can hold",
        ),
    ]


PAIRS = [*of_torch(), *of_transformers(), *of_timm()]
