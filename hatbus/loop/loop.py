"""The loop: the core's own ``run_loop``, ``run_epoch`` and ``run_step``, as any plugin would do it.

What surrounds these spans (moments, task scope, intervals) are hook wrappers; see
``hatbus.events.training`` for the whole picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hatbus.batches.batch_processor import clear_gradients
from hatbus.errors import HookError
from hatbus.events.declare import hookimpl
from hatbus.log import log
from hatbus.loop.module_names import GIVEN, check_not_replaced
from hatbus.loop.structure import structure_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hatbus.loop.context import Context

_UNTRAINED: Final = "model.untrained"
_SHOWN: Final = 5
_SERVED: Final = ("validate", "stop epoch", "stop run", "save")


class Loop:
    """Epochs, steps, and the order of things inside a step."""

    def __init__(self) -> None:
        self._structure = -1
        self._others: list[Any] = []

    @hookimpl(trylast=True)
    def run_loop(self, ctx: Context) -> int:
        """Runs epochs until the plan is fulfilled or a stop was granted."""
        position, given = ctx.position, ctx.storage.get(GIVEN, ctx.model)
        ctx.bus.check_states()
        while not is_done(ctx):
            check_not_replaced(given, ctx.model, ctx.wrapped_model)
            ctx.epoch_id = position.epoch
            if position.step != ctx.steps_per_epoch:  # else none is left: the last counts
                ctx.step_id, ctx.global_step_id = position.step, position.global_step
            ctx.emit.run_epoch(ctx)
            ctx.control.withdraw("stop epoch")  # it is over
            if ctx.control.due(f"at the end of epoch {ctx.epoch_id}"):
                serve_requests(ctx)
            ctx.control.leave_epoch()
        for _ in _SERVED:  # what serving the last requests asks for is served too, but no circle
            if not ctx.control.is_owed():
                break
            serve_requests(ctx)
        return position.global_step

    @hookimpl(trylast=True)
    def run_epoch(self, ctx: Context) -> int:
        """Runs the steps of one epoch, from the first that is still to do."""
        position, control, emit = ctx.position, ctx.control, ctx.emit
        first, complete = position.step, False
        if ctx.data is None:  # a context of somebody else's loop
            raise HookError(
                "run_epoch takes batches from ctx.data, which only the Trainer makes; in a loop of "
                "your own run the steps: ctx.emit.run_step(ctx)"
            )
        steps = ctx.data.steps(ctx)
        for ctx.batches in steps:  # the context holds the step's batches
            ctx.step_id, ctx.global_step_id = position.step, position.global_step
            position.step += 1
            position.global_step += 1
            ctx.committed, ctx.losses = False, {}
            emit.run_step(ctx)
            if (control.pending or control.is_shared) and control.due():
                serve_requests(ctx)
            if control.stopped is not None or position.global_step == ctx.num_steps:
                break
        else:
            complete = True
        ran = position.step - first
        if not ran and first:  # only the end was left
            ctx.step_id, ctx.global_step_id = first - 1, position.global_step - 1
        if not complete and position.step == ctx.steps_per_epoch:
            complete = ctx.data.is_at_end(ctx)
        if control.leave_epoch() or complete:
            position.epoch, position.step = position.epoch + 1, 0
        return ran

    @hookimpl(trylast=True)
    def run_step(self, ctx: Context) -> bool:
        """Runs the step's batches, then makes one update."""
        emit, scopes = ctx.emit, ctx.bus.scopes
        if self._structure != structure_of(ctx):
            self._structure = structure_of(ctx)
            self._others = untrained(ctx)
        clear_gradients(ctx.optimizer)
        for parameter in self._others:
            parameter.grad = None
        losses: dict[str, Any] = {}
        if ctx.bus.asks_batches:
            ctx.batches = kept_batches(ctx)
        for ctx.task, ctx.batch, ctx.weight in ctx.batches:  # noqa: B020 - and each of them
            ctx.model_outs, ctx.losses = None, {}
            found = scopes[ctx.task].run_batch(ctx)
            found = found if ctx.task is None else losses_of_task(found, ctx.task)
            is_all = ctx.weight == 1.0 and not losses
            losses = found if is_all else with_more(losses, found, ctx.weight)
        ctx.task, ctx.losses, ctx.grad_norm = None, losses, None
        emit.clip_gradients(ctx)
        decide = emit.skip_update
        reasons = decide(ctx) if decide is not None else ()
        if reasons or not ctx.batches:
            log_skipped(ctx, "update", reasons)
        else:
            emit.optimizer_step(ctx)
        return ctx.committed


def untrained(ctx: Context) -> list[Any]:
    """The model's parameters that get gradients, and that the optimizer does not have.

    Their gradients are to be cleared too: they would add up over all steps. Each is warned of once.
    """
    model: Any = ctx.model  # a loop of somebody's own may have none
    if model is None or ctx.optimizer is None:
        return []
    trained = {id(one) for group in ctx.optimizer.param_groups for one in group["params"]}
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    others = [(name, one) for name, one in named if id(one) not in trained]
    known = ctx.storage.setdefault(_UNTRAINED, set())
    new = [name for name, _ in others if name not in known]
    known.update(new)
    if new and ctx.rank == 0:
        more = f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
        log.warning(
            "the optimizer does not have %s%s, so they stay as they are, though they ask for "
            "gradients; give them to the optimizer, or call requires_grad_(False) on them",
            ", ".join(map(repr, new[:_SHOWN])),
            more,
        )
    return [one for _, one in others]


def losses_of_task(losses: dict[str, Any], task: str) -> dict[str, Any]:
    """A task's losses under the names they have at step end: ``"det/box"`` for ``"box"`` of det.

    Args:
        losses: name to 0-d loss, of one batch.
        task: whose batch it was.
    """
    return {f"{task}/{name}": loss for name, loss in losses.items()}


def with_more(losses: dict[str, Any], found: dict[str, Any], weight: float) -> dict[str, Any]:
    """The losses of a step with one more batch's: they sum up to what the step differentiates.

    So a loss that is not finite is seen whichever micro-batch it came from.
    """
    if weight == 1.0 and losses.keys().isdisjoint(found):
        return {**losses, **found}
    more = {name: loss.detach() * weight for name, loss in found.items()}
    both = losses.keys() & more.keys()
    return {**losses, **more, **{name: losses[name].detach() + more[name] for name in both}}


def is_done(ctx: Context) -> bool:
    """Whether the plan is fulfilled, or a stop of the run was granted."""
    if ctx.control.stopped is not None and ctx.control.stopped.wish == "stop run":
        return True
    if ctx.num_steps is not None:
        return ctx.position.global_step >= ctx.num_steps
    return ctx.num_epochs is not None and ctx.position.epoch >= ctx.num_epochs


def is_cut_short(ctx: Context) -> bool:
    """Whether the epoch that ends was stopped inside, for a resume to go on with it.

    Its end is then still to come: what is published of it, the resumed run publishes. A run that
    has all its ``num_steps`` ends its last epoch, wherever that is.
    """
    position = ctx.position
    is_training = ctx.optimizer is not None
    return is_training and position.step != 0 and position.global_step != ctx.num_steps


def serve_requests(ctx: Context) -> None:
    """Does what plugins asked for: validate, then stop, then save, which keeps that it stopped."""
    taken = ctx.control.take()
    ctx.control.is_serving = True
    for request in sorted(taken, key=lambda r: _SERVED.index(r.wish)):
        served = True
        if request.wish == "validate":
            served = ctx.emit.validate(ctx, request.reason)
        elif request.wish == "save":
            served = ctx.save(request.reason)
        else:
            ctx.control.grant(request)
        if served is False:
            log.warning("%s: asked for by %s, but nothing did it", request.wish, request.by)
    ctx.control.is_serving = False


def kept_batches(ctx: Context) -> list[tuple[str | None, Any, float]]:
    """The step's batches that no plugin asks to skip; those kept of a group share its weight."""
    kept: list[tuple[str | None, Any, float]] = []
    reasons = iter(ctx.control.agree([reasons_to_skip(ctx, one) for one in ctx.batches]))
    for group in groups_of(ctx.batches):
        mine = [entry for entry in group if not is_skipped(ctx, entry, next(reasons))]
        kept += [(task, batch, w * len(group) / len(mine)) for task, batch, w in mine]
    return kept


def groups_of(batches: Sequence[tuple[str | None, Any, float]]) -> list[list[Any]]:
    """The step's batches by group: a batch of weight 1/n is one of n micro-batches of a group."""
    groups: list[list[Any]] = []
    for entry in batches:
        last = groups[-1] if groups else []
        task, _, weight = entry
        is_same = bool(last) and last[0][0] == task and last[0][2] == weight
        if not is_same or len(last) >= round(1 / (weight or 1)):
            groups.append([])
        groups[-1].append(entry)
    return groups


def reasons_to_skip(ctx: Context, entry: tuple[str | None, Any, float]) -> list[tuple[str, str]]:
    """Why plugins of this process ask to leave a batch out; each is asked once."""
    ctx.task, ctx.batch, ctx.weight = entry
    ctx.model_outs = None
    asks = ctx.bus.scopes[ctx.task].skip_batch
    return list(asks(ctx)) if asks is not None else []


def is_skipped(
    ctx: Context, entry: tuple[str | None, Any, float], reasons: Sequence[tuple[str, str]]
) -> bool:
    """Whether a batch is left out, which is logged then."""
    ctx.task, ctx.batch, ctx.weight = entry
    log_skipped(ctx, "batch", reasons)
    return bool(reasons)


def log_skipped(ctx: Context, what: str, reasons: Sequence[tuple[str, str]]) -> None:
    """Says what was skipped, by whom and why."""
    for name, reason in reasons:
        task = f", task {ctx.task!r}" if ctx.task else ""
        log.info("step %d%s: %s skipped by %s (%s)", ctx.global_step_id, task, what, name, reason)


class UnprovidedSpans:
    """Answers the spans that only plugins provide, where none does: nothing was done (False).

    The last part on a bus: ``validate``, ``write_outputs``, ``save_checkpoint``,
    ``load_checkpoint`` and ``export_model``.
    """

    @hookimpl(trylast=True)
    def validate(self) -> bool:
        """Nobody validates."""
        return False

    @hookimpl(trylast=True)
    def write_outputs(self) -> bool:
        """Nobody writes."""
        return False

    @hookimpl(trylast=True)
    def save_checkpoint(self) -> bool:
        """Nobody saves."""
        return False

    @hookimpl(trylast=True)
    def load_checkpoint(self) -> bool:
        """Nobody loads."""
        return False

    @hookimpl(trylast=True)
    def export_model(self) -> bool:
        """Nobody exports."""
        return False
