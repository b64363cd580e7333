"""A run of several processes: DDP, models whose weights are sharded, what all ranks agree on.

Public: what a plugin must know of a model's weights before it reads or replaces them, and how it
adds numbers up over all processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.parallel.agreed import host_group
    from hatbus.parallel.modes.exchange import share_each_batch, wrapped_in_ddp
    from hatbus.parallel.modes.options import Parallel
    from hatbus.parallel.processes import act_together
    from hatbus.parallel.sharding import (
        full_tensor,
        is_shard,
        is_sharded,
        largest_magnitudes,
        local_tensor,
        refuse_sharded,
        reshard,
    )
    from hatbus.parallel.stopping import stop_agreed
    from hatbus.parallel.together import AddsUp, summed

__all__ = [
    "AddsUp",
    "Parallel",
    "act_together",
    "full_tensor",
    "host_group",
    "is_shard",
    "is_sharded",
    "largest_magnitudes",
    "local_tensor",
    "refuse_sharded",
    "reshard",
    "share_each_batch",
    "stop_agreed",
    "summed",
    "wrapped_in_ddp",
]

__getattr__ = lazily(
    __name__,
    Parallel="modes.options",
    share_each_batch="modes.exchange",
    wrapped_in_ddp="modes.exchange",
    act_together="processes",
    full_tensor="sharding",
    host_group="agreed",
    is_shard="sharding",
    is_sharded="sharding",
    largest_magnitudes="sharding",
    local_tensor="sharding",
    refuse_sharded="sharding",
    reshard="sharding",
    stop_agreed="stopping",
    AddsUp="together",
    summed="together",
)
