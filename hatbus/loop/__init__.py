"""The training loop: its context, requests, batch processor, precision, signals, weight views."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.loop.context import Context, Position
    from hatbus.loop.control import Control, Request
    from hatbus.loop.loop import (
        Loop,
        Nobody,
        is_cut_short,
        is_done,
        kept_batches,
        prefixed,
        serve_requests,
    )
    from hatbus.loop.loss_collectors import (
        collect_loss_by_index,
        collect_loss_by_regex,
        collect_losses,
    )
    from hatbus.loop.modes import eval_mode
    from hatbus.loop.module_names import find_module, structure_changed, structure_of, unwrapped
    from hatbus.loop.signals import stop_wanted
    from hatbus.loop.weights import RAW

__all__ = [
    "RAW",
    "Context",
    "Control",
    "Loop",
    "Nobody",
    "Position",
    "Request",
    "collect_loss_by_index",
    "collect_loss_by_regex",
    "collect_losses",
    "eval_mode",
    "find_module",
    "is_cut_short",
    "is_done",
    "kept_batches",
    "prefixed",
    "serve_requests",
    "stop_wanted",
    "structure_changed",
    "structure_of",
    "unwrapped",
]

__getattr__ = lazily(
    __name__,
    collect_loss_by_index="loss_collectors",
    collect_loss_by_regex="loss_collectors",
    collect_losses="loss_collectors",
    Context="context",
    Control="control",
    eval_mode="modes",
    find_module="module_names",
    is_cut_short="loop",
    is_done="loop",
    kept_batches="loop",
    Loop="loop",
    Nobody="loop",
    Position="context",
    prefixed="loop",
    RAW="weights",
    Request="control",
    serve_requests="loop",
    stop_wanted="signals",
    structure_changed="module_names",
    structure_of="module_names",
    unwrapped="module_names",
)
