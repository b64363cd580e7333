"""hatbus plugins: validation during training, of a mean teacher too, and early stopping."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_validation.early_stopping import EarlyStopping
    from hatbus_validation.mean_teacher_validation import MeanTeacherValidation
    from hatbus_validation.validation import Validation

__all__ = ["EarlyStopping", "MeanTeacherValidation", "Validation"]

__getattr__ = lazily(
    __name__,
    EarlyStopping="early_stopping",
    MeanTeacherValidation="mean_teacher_validation",
    Validation="validation",
)
