"""What a trainer does beside training, with the model as it is: validating, predicting.

Public: which numbers a run has published, the means of losses over samples and ranks, and what a
validation has of the training's forward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.evaluation.inherited import inherit
    from hatbus.evaluation.loss_means import LossMeans
    from hatbus.evaluation.numbers import scalars_of

__all__ = ["LossMeans", "inherit", "scalars_of"]

__getattr__ = lazily(__name__, LossMeans="loss_means", inherit="inherited", scalars_of="numbers")
