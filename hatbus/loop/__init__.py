"""The training loop, and what plugins find in ``ctx``: counters, requests, weight views.

Public: the types behind ``hatbus.Context``, modules by name, and the steps of the loop that a loop
of your own shares with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.loop.beside import Beside, modules_in
    from hatbus.loop.context import Context, Position
    from hatbus.loop.control import Control, Request
    from hatbus.loop.files import claim_file, file_owner, instance_name
    from hatbus.loop.loop import (
        Loop,
        UnprovidedSpans,
        is_cut_short,
        is_done,
        kept_batches,
        losses_of_task,
        serve_requests,
    )
    from hatbus.loop.modes import eval_mode, parts_of
    from hatbus.loop.module_names import find_module, has_module, plain_name, unwrapped
    from hatbus.loop.open_spans import OpenSpans
    from hatbus.loop.signals import stop_wanted
    from hatbus.loop.structure import structure_changed, structure_of, structure_watched
    from hatbus.loop.weights import RAW, Weights

__all__ = [
    "RAW",
    "Beside",
    "Context",
    "Control",
    "Loop",
    "OpenSpans",
    "Position",
    "Request",
    "UnprovidedSpans",
    "Weights",
    "claim_file",
    "eval_mode",
    "file_owner",
    "find_module",
    "has_module",
    "instance_name",
    "is_cut_short",
    "is_done",
    "kept_batches",
    "losses_of_task",
    "modules_in",
    "parts_of",
    "plain_name",
    "serve_requests",
    "stop_wanted",
    "structure_changed",
    "structure_of",
    "structure_watched",
    "unwrapped",
]

__getattr__ = lazily(
    __name__,
    Beside="beside",
    modules_in="beside",
    Context="context",
    Position="context",
    Control="control",
    Request="control",
    claim_file="files",
    instance_name="files",
    file_owner="files",
    Loop="loop",
    UnprovidedSpans="loop",
    is_cut_short="loop",
    is_done="loop",
    kept_batches="loop",
    losses_of_task="loop",
    serve_requests="loop",
    eval_mode="modes",
    parts_of="modes",
    OpenSpans="open_spans",
    find_module="module_names",
    has_module="module_names",
    structure_changed="structure",
    structure_of="structure",
    structure_watched="structure",
    unwrapped="module_names",
    stop_wanted="signals",
    plain_name="module_names",
    RAW="weights",
    Weights="weights",
)
