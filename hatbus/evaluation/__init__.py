"""What a trainer does beside training, with the model as it is: validating, predicting.

Public: which numbers a run has published, and the means of losses over samples and ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.evaluation.loss_means import LossMeans
    from hatbus.evaluation.numbers import scalars_of

__all__ = ["LossMeans", "scalars_of"]

__getattr__ = lazily(__name__, scalars_of="numbers", LossMeans="loss_means")
