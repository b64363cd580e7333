"""What of hatbus itself is on a trainer's bus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hatbus.batches.finite import finite_loss
from hatbus.batches.finite_weights import FiniteWeights
from hatbus.batches.precision import Autocast, LossScaling
from hatbus.bus.member import CORE
from hatbus.bus.moments import Moments, TaskScope
from hatbus.evaluation.schedule_free import ScheduleFree, has_modes
from hatbus.loop.loop import Loop, UnprovidedSpans
from hatbus.parallel.beside import ShareBeside
from hatbus.parallel.launch import may_restart, rank_and_world
from hatbus.parallel.modes.exchange import ShareGradientsOnce
from hatbus.parallel.processes import NotesSaves
from hatbus.parallel.together import AgreedDecisions, SameTasks

if TYPE_CHECKING:
    import torch

    from hatbus.batches.batch_processor import BatchProcessor
    from hatbus.bus.bus import Bus
    from hatbus.data.steps import Steps
    from hatbus.loop.signals import Signals


def core_parts(
    processor: BatchProcessor,
    steps: Steps,
    place: torch.device,
    nan: str,
    precision: str,
    signals: Signals,
    optimizer: Any,
) -> dict[str, object]:
    """hatbus's own parts by name, wrappers outermost first."""
    is_shared = rank_and_world()[1] > 1
    parts: dict[str, object] = {"signals": signals}
    if has_modes(optimizer):
        parts["schedule_free"] = ScheduleFree()
    if steps.tasks:
        parts["task_scope"] = TaskScope()
    parts["moments"] = Moments()
    if may_restart():
        parts["notes_saves"] = NotesSaves()
    if is_shared:
        parts["share_gradients_once"] = ShareGradientsOnce()
        parts["share_beside"] = ShareBeside()
        parts["same_tasks"] = SameTasks()
    if precision != "fp32":
        parts["autocast"] = Autocast(precision)
    if precision == "fp16":
        parts["loss_scaling"] = LossScaling()
    finite = finite_loss(nan, place)
    if finite is not None:
        parts["finite_loss"] = finite
    parts["finite_weights"] = FiniteWeights(nan)
    if is_shared:
        parts["agreed_decisions"] = AgreedDecisions()
    parts.update(loop=Loop(), batch_processor=processor, nobody=UnprovidedSpans())
    return parts


def saves(bus: Bus) -> bool:
    """Whether a plugin writes checkpoints, so that the run may be resumed."""
    found = bus.implementations("save_checkpoint")
    return any(not one.wrapper and not one.plugin_name.startswith(CORE) for one in found)
