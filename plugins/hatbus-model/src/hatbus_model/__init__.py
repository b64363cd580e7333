"""Plugins for the model's weights: freezing, fusing, averaging, teaching."""

from hatbus_model.ema import ExponentialMovingAverage
from hatbus_model.freeze_bn_statistics import FreezeBNStatistics
from hatbus_model.freeze_module import FreezeModule
from hatbus_model.fuse_bn import FuseBN
from hatbus_model.mean_teacher import MeanTeacher

__all__ = [
    "ExponentialMovingAverage",
    "FreezeBNStatistics",
    "FreezeModule",
    "FuseBN",
    "MeanTeacher",
]
