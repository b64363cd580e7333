"""What a trainer does beside training, with the model as it is: validating, predicting.

Public: which numbers a run has published, and which names it will; the means of losses over samples
and ranks, of a step too; and what a validation has of the training's forward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.evaluation.inherited import inherit
    from hatbus.evaluation.loss_means import LossMeans
    from hatbus.evaluation.numbers import scalars_of
    from hatbus.evaluation.step_losses import StepLosses, mean_losses
    from hatbus.evaluation.watched import check_published, expected_losses, published_names

__all__ = [
    "LossMeans",
    "StepLosses",
    "check_published",
    "expected_losses",
    "inherit",
    "mean_losses",
    "published_names",
    "scalars_of",
]

__getattr__ = lazily(
    __name__,
    LossMeans="loss_means",
    inherit="inherited",
    scalars_of="numbers",
    StepLosses="step_losses",
    mean_losses="step_losses",
    check_published="watched",
    expected_losses="watched",
    published_names="watched",
)
