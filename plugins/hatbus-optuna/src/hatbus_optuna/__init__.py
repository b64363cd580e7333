"""Runs as trials of Optuna: a plugin that reports and prunes, and trials that outlive a kill."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_optuna.optuna_pruning import OptunaPruning
    from hatbus_optuna.trials import lasting, name_of, run_trial

__all__ = ["OptunaPruning", "lasting", "name_of", "run_trial"]

__getattr__ = lazily(
    __name__,
    OptunaPruning="optuna_pruning",
    lasting="trials",
    name_of="trials",
    run_trial="trials",
)
