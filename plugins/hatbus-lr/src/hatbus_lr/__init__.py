"""Learning rates for hatbus: the seven updaters of HAT, torch's own schedulers, a range test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_lr.cos_lr import CosLrUpdater
    from hatbus_lr.cosine_annealing_lr import CosineAnnealingLrUpdater
    from hatbus_lr.cyclic_lr import CyclicLrUpdater
    from hatbus_lr.noam_lr import NoamLrUpdater
    from hatbus_lr.one_cycle_lr import OneCycleUpdater
    from hatbus_lr.poly_lr import PolyLrUpdater
    from hatbus_lr.range_test import LrCurve, find_lr
    from hatbus_lr.step_decay_lr import StepDecayLrUpdater
    from hatbus_lr.torch_lr import TorchLr

__all__ = [
    "CosLrUpdater",
    "CosineAnnealingLrUpdater",
    "CyclicLrUpdater",
    "LrCurve",
    "NoamLrUpdater",
    "OneCycleUpdater",
    "PolyLrUpdater",
    "StepDecayLrUpdater",
    "TorchLr",
    "find_lr",
]

__getattr__ = lazily(
    __name__,
    CosLrUpdater="cos_lr",
    CosineAnnealingLrUpdater="cosine_annealing_lr",
    CyclicLrUpdater="cyclic_lr",
    LrCurve="range_test",
    find_lr="range_test",
    NoamLrUpdater="noam_lr",
    OneCycleUpdater="one_cycle_lr",
    PolyLrUpdater="poly_lr",
    StepDecayLrUpdater="step_decay_lr",
    TorchLr="torch_lr",
)
