"""Several processes: DDP, sharded models, and what all ranks agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.parallel.processes import share
    from hatbus.parallel.sharding import is_shard, is_sharded, refuse_sharded, reshard, whole

__all__ = ["is_shard", "is_sharded", "refuse_sharded", "reshard", "share", "whole"]

__getattr__ = lazily(
    __name__,
    is_shard="sharding",
    is_sharded="sharding",
    refuse_sharded="sharding",
    reshard="sharding",
    share="processes",
    whole="sharding",
)
