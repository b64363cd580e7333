"""The batch processor of a validation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hatbus import BatchProcessor
from hatbus.batches import PROCESSORS, HatBatchProcessor
from hatbus.discovery import build
from hatbus.errors import PluginError
from hatbus.loop import modules_in

if TYPE_CHECKING:
    from torch import nn

    from hatbus import Context


def evaluation_processor(given: Any, outer: Context) -> Any:
    """A processor that computes no gradients.

    Args:
        given: a processor; a config of one, or options of a ``BatchProcessor``; None for the
            trainer's own.
        outer: the training run.

    Raises:
        PluginError: it updates, or there is none.
    """
    if isinstance(given, Mapping):
        config = {"type": BatchProcessor, **given, "need_grad_update": False}
        made = build(config, "validation: batch_processor", PROCESSORS)
        own = outer.bus.members["core.batch_processor"].plugin
        if isinstance(made, HatBatchProcessor) and isinstance(own, BatchProcessor):
            made.adopt_loss(own.loss)
        return made
    if given is None:
        return without_gradients(outer)
    if getattr(given, "need_grad_update", False):
        raise PluginError(
            "validation: batch_processor runs backward and update; accepted: "
            "BatchProcessor(loss, need_grad_update=False), or none for the trainer's own"
        )
    return given


def without_gradients(outer: Context) -> Any:
    """A copy of the trainer's processor that computes no gradients."""
    member = outer.bus.members.get("core.batch_processor")
    if member is None or not hasattr(member.plugin, "need_grad_update"):
        raise PluginError(
            "validation: the run has no batch processor with need_grad_update; accepted: "
            "batch_processor=BatchProcessor(loss, need_grad_update=False)"
        )
    processor: Any = copy.copy(member.plugin)
    processor.need_grad_update = False
    return processor


def modules_of(processor: Any, outer: Context) -> list[nn.Module]:
    """The modules that a validation runs beside its model, such as a loss, on the run's device.

    Those of the training are there already; a processor of the validation's own may bring others.
    """
    found = {id(module): module for module in outer.modules.values()}
    parts = {id(part) for part in outer.model.modules()}
    for _, module in modules_in(processor):
        if id(module) not in found and id(module) not in parts:
            found[id(module)] = module.to(outer.device)
    return list(found.values())
