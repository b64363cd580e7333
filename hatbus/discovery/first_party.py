"""The names of plugins and commands that are hatbus's own; nobody else may offer one."""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class FirstParty(NamedTuple):
    """Where one of hatbus's own plugins comes from."""

    distribution: str
    class_name: str


FIRST_PARTY: Final[dict[str, FirstParty]] = {
    "checkpoint": FirstParty("hatbus-checkpoint", "Checkpoint"),
    "closure": FirstParty("hatbus-grad", "Closure"),
    "cos_lr": FirstParty("hatbus-lr", "CosLrUpdater"),
    "cosine_annealing_lr": FirstParty("hatbus-lr", "CosineAnnealingLrUpdater"),
    "csv_log": FirstParty("hatbus-monitor", "CsvLog"),
    "cyclic_lr": FirstParty("hatbus-lr", "CyclicLrUpdater"),
    "early_stopping": FirstParty("hatbus-validation", "EarlyStopping"),
    "ema": FirstParty("hatbus-model", "ExponentialMovingAverage"),
    "freeze_bn_statistics": FirstParty("hatbus-model", "FreezeBNStatistics"),
    "freeze_observers": FirstParty("hatbus-quantization", "FreezeObservers"),
    "freeze_module": FirstParty("hatbus-model", "FreezeModule"),
    "fuse_bn": FirstParty("hatbus-model", "FuseBN"),
    "grad_clip": FirstParty("hatbus-grad", "GradClip"),
    "grad_monitor": FirstParty("hatbus-monitor", "GradMonitor"),
    "grad_scale": FirstParty("hatbus-grad", "GradScale"),
    "jsonl_log": FirstParty("hatbus-monitor", "JsonlLog"),
    "lightning_callback": FirstParty("hatbus-hosts", "LightningCallback"),
    "mean_teacher": FirstParty("hatbus-model", "MeanTeacher"),
    "mean_teacher_validation": FirstParty("hatbus-validation", "MeanTeacherValidation"),
    "metric_updater": FirstParty("hatbus-monitor", "MetricUpdater"),
    "mlflow": FirstParty("hatbus-mlflow", "MLflow"),
    "nan_guard": FirstParty("hatbus-monitor", "NanGuard"),
    "noam_lr": FirstParty("hatbus-lr", "NoamLrUpdater"),
    "one_cycle_lr": FirstParty("hatbus-lr", "OneCycleUpdater"),
    "orchard_hooks": FirstParty("hatbus-hosts", "OrchardHooks"),
    "optuna_pruning": FirstParty("hatbus-optuna", "OptunaPruning"),
    "poly_lr": FirstParty("hatbus-lr", "PolyLrUpdater"),
    "predictions": FirstParty("hatbus-checkpoint", "Predictions"),
    "progress": FirstParty("hatbus-monitor", "Progress"),
    "save_traced": FirstParty("hatbus-export", "SaveTraced"),
    "stats_monitor": FirstParty("hatbus-monitor", "StatsMonitor"),
    "step_decay_lr": FirstParty("hatbus-lr", "StepDecayLrUpdater"),
    "tensorboard": FirstParty("hatbus-tensorboard", "TensorBoard"),
    "torch_lr": FirstParty("hatbus-lr", "TorchLr"),
    "trackio": FirstParty("hatbus-trackio", "Trackio"),
    "transformers_callback": FirstParty("hatbus-hosts", "TransformersCallback"),
    "validation": FirstParty("hatbus-validation", "Validation"),
    "wandb": FirstParty("hatbus-wandb", "Wandb"),
}
"""Reserved plugin name to its home."""

COMMANDS: Final[dict[str, str]] = {
    **dict.fromkeys(("run", "resume", "explain", "preview", "plugins", "events"), "hatbus"),
    **dict.fromkeys(("new-plugin", "runs", "schema", "deliver"), "hatbus"),
    "checkpoints": "hatbus-checkpoint",
    "evaluate": "hatbus-checkpoint",
    "export": "hatbus-checkpoint",
    "lr-find": "hatbus-lr",
    "summary": "hatbus-model",
    "predict": "hatbus-checkpoint",
}
"""Reserved command to the distribution that brings it."""

DISTRIBUTIONS: Final = frozenset({"hatbus", *(own.distribution for own in FIRST_PARTY.values())})


def normalized(distribution: str) -> str:
    """A distribution's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def is_first_party(distribution: str) -> bool:
    """Whether a distribution is hatbus itself or one of its plugin distributions."""
    return normalized(distribution) in DISTRIBUTIONS
