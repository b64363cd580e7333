"""What happens to one batch and to the gradients of one step: losses, precision, NaN.

``hatbus.BatchProcessor`` does it. Public beside it: processors with HAT's arguments, and collectors
that find the losses in what a model returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.batches.direct import direct_loss, plain_processor
    from hatbus.batches.hat_processors import PROCESSORS, HatBatchProcessor
    from hatbus.batches.loss_collectors import (
        collect_loss_by_index,
        collect_loss_by_regex,
        collect_losses,
        named_losses,
    )
    from hatbus.batches.parts import built_optimizer, built_parts

__all__ = [
    "PROCESSORS",
    "HatBatchProcessor",
    "built_optimizer",
    "built_parts",
    "collect_loss_by_index",
    "collect_loss_by_regex",
    "collect_losses",
    "direct_loss",
    "named_losses",
    "plain_processor",
]

__getattr__ = lazily(
    __name__,
    direct_loss="direct",
    plain_processor="direct",
    HatBatchProcessor="hat_processors",
    PROCESSORS="hat_processors",
    collect_loss_by_index="loss_collectors",
    collect_loss_by_regex="loss_collectors",
    collect_losses="loss_collectors",
    named_losses="loss_collectors",
    built_optimizer="parts",
    built_parts="parts",
)
