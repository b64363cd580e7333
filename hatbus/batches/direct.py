"""Whether forward and loss of an evaluation may be called without the bus, as nobody hears them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hatbus.batches.batch_processor import BatchProcessor
from hatbus.bus.moments import Moments

if TYPE_CHECKING:
    from hatbus.bus.bus import Bus
    from hatbus.loop.context import Context


def plain_processor(bus: Bus) -> BatchProcessor | None:
    """The processor of an evaluation, where ``run_batch`` is its own and only moments surround it.

    Args:
        bus: of the evaluation. What is found holds as long as ``bus.freezes`` is the same.
    """
    *around, own = bus.implementations("run_batch")
    own_function = getattr(own.function, "__func__", None)
    surrounding = {getattr(one.function, "__func__", None) for one in around}
    is_plain = own_function is BatchProcessor.run_batch and surrounding <= {Moments.run_batch}
    processor: Any = own.plugin
    if not is_plain or bus.emitter().on_batch_begin is not None or processor.need_grad_update:
        return None
    found: BatchProcessor = processor
    return found


def direct_loss(processor: BatchProcessor, ctx: Context) -> Callable[[Any, Any], Any] | None:
    """The loss function, where a batch's forward is a call of the model and its loss a call of it.

    So it is for a batch that is a pair of a tensor and something; and as long as the events are
    frozen as they are (``ctx.emit.run_batch`` is the same).

    Args:
        processor: from ``plain_processor``.
        ctx: of the evaluation, outside of any task.

    Returns:
        None where plugins have a say in forward or loss, or before the first batch.
    """
    call = processor.known_call(ctx)
    loss: Any = processor.loss
    return loss if call is not None and call.is_direct else None
