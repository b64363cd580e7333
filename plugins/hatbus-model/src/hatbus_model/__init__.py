"""Plugins for the model's weights: freezing, fusing, averaging, teaching; a summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_model.ema import ExponentialMovingAverage
    from hatbus_model.freeze_bn_statistics import FreezeBNStatistics
    from hatbus_model.freeze_module import FreezeModule
    from hatbus_model.fuse_bn import FuseBN
    from hatbus_model.mean_teacher import MeanTeacher
    from hatbus_model.model_summary import Summary, summarize

__all__ = [
    "ExponentialMovingAverage",
    "FreezeBNStatistics",
    "FreezeModule",
    "FuseBN",
    "MeanTeacher",
    "Summary",
    "summarize",
]

__getattr__ = lazily(
    __name__,
    ExponentialMovingAverage="ema",
    FreezeBNStatistics="freeze_bn_statistics",
    FreezeModule="freeze_module",
    FuseBN="fuse_bn",
    MeanTeacher="mean_teacher",
    Summary="model_summary",
    summarize="model_summary",
)
