"""Core hook wrappers: the moments around spans, and the task's scope.

The wrapper that emits a span's begin and end is written down as text and compiled in three forms:
the generator that pluggy knows as the outermost wrapper of the span; the plain function that frozen
dispatch runs in its place (a generator costs three times as much); and its halves, for a loop in
which begin and end of a span stand in two places.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hatbus.bus.blame import note_another
from hatbus.bus.member import is_core
from hatbus.events.declare import hookimpl
from hatbus.events.payload import BATCH
from hatbus.events.training import EVENTS, PAIRS

if TYPE_CHECKING:
    from pluggy import HookImpl

    from hatbus.loop.context import Context

Body = Callable[..., Any]
Wrapper = Callable[..., Generator[None, Any, Any]]

_TEXT: Final = """
def {span}({parameters}):
    emit = ctx.emit
    try:
        moment = emit.{begin}
        if moment is not None:
            moment(ctx)
        {ready}
        value = {inside}
        {keep}
    except BaseException as error:
        outer, ctx.exception = ctx.exception, error
        {tell}
        emit_after_error(emit.{end}, error, ctx)
        ctx.exception = outer  # whoever called may handle the error
        raise
    moment = emit.{end}
    if moment is not None:
        moment(ctx)
    return {value}
"""
_HALVES: Final = """
def begin(ctx):
    moment = ctx.emit.{begin}
    if moment is not None:
        moment(ctx)
    {ready}

def finish(ctx, value):
    {keep}
    moment = ctx.emit.{end}
    if moment is not None:
        moment(ctx)
    return {value}

def fail(ctx, error):
    emit, outer = ctx.emit, ctx.exception
    ctx.exception = error
    {tell}
    emit_after_error(emit.{end}, error, ctx)
    ctx.exception = outer  # whoever called may handle the error
"""


class Halves(NamedTuple):
    """A wrapper as three functions: before the work, after it, and after an error in it or before.

    Attributes:
        begin: given the context.
        finish: given the context and the work's result; gives the wrapper's.
        fail: given the context and the error.
    """

    begin: Callable[[Context], None]
    finish: Callable[[Context, Any], Any]
    fail: Callable[[Context, BaseException], None]


def emitting(
    span: str,
    keep: str = "pass",
    value: str = "value",
    failing: str | None = None,
    ready: str = "pass",
) -> Wrapper:
    """A hook wrapper that emits a span's begin and end around it.

    Args:
        span: the span.
        keep: statement that keeps the span's ``value`` before the end is emitted.
        value: expression for what the wrapper returns.
        failing: event that is told an exception before the end is emitted.
        ready: statement between the begin and the body.

    Returns:
        The wrapper, a generator function. Its ``around(self, body)`` gives the plain form, its
        ``halves`` are the third; its ``moments`` name what it emits, so that the bus can leave it
        out when nobody listens (empty when it does more than emit). ``unless_kept`` names the same
        where it keeps the value, so that the bus can leave it out if the one implementation
        ``keeps`` that itself.
    """
    begin, end = PAIRS[span]
    tell = f"emit_after_error(emit.{failing}, error, ctx, error)" if failing else "pass"
    parts = {"span": span, "begin": begin, "end": end, "keep": keep, "tell": tell, "value": value}
    parts["ready"] = ready
    more = [name for name in EVENTS[span].arguments if name not in BATCH]
    passed = ", ".join(["ctx", *more])

    def compiled(text: str, **names: Any) -> Any:
        names["emit_after_error"] = emit_after_error
        exec(text, names)  # noqa: S102 - one of the texts above
        return names

    def whole(parameters: str, inside: str, **names: Any) -> Any:
        return compiled(_TEXT.format(**parts, parameters=parameters, inside=inside), **names)[span]

    wrapper: Any = whole("self, ctx", "yield")
    wrapper.__doc__ = f"Emits {begin} and {end}."
    wrapper.around = lambda _, body: whole(passed, f"body({passed})", body=body)
    made = compiled(_HALVES.format(**parts))
    wrapper.halves = Halves(*(made[name] for name in Halves._fields))
    heard = (begin, end) if failing is None else (begin, end, failing)
    wrapper.moments = heard if keep == ready == "pass" else ()
    wrapper.unless_kept = heard if ready == "pass" else ()
    marked: Wrapper = hookimpl(wrapper=True, tryfirst=True)(wrapper)
    return marked


def without_idle(impls: list[HookImpl], hook: Any) -> list[HookImpl]:
    """The implementations of an event but those wrappers of hatbus's that would do nothing.

    A wrapper that emits moments which nobody hears does nothing; where it keeps the result too, so
    does the one implementation (``BatchProcessor.forward``), and no plugin's wrapper changes it.

    Args:
        impls: of one event in one scope.
        hook: pluggy's callers.
    """
    bodies = [one for one in impls if not one.wrapper]
    are_core = all(is_core(one.plugin_name) for one in impls)
    is_kept = are_core and len(bodies) == 1 and hasattr(bodies[0].function, "keeps")
    name = "unless_kept" if is_kept else "moments"

    def is_needed(impl: HookImpl) -> bool:
        pair = getattr(impl.function, name, ())
        return not pair or any(getattr(hook, one).get_hookimpls() for one in pair)

    return [impl for impl in impls if is_needed(impl)]


def emit_after_error(event: Body | None, error: BaseException, *arguments: Any) -> None:
    """Emits an event on the way out of an error; a second error becomes a note on the first."""
    if event is None:
        return
    try:
        event(*arguments)
    except BaseException as another:  # noqa: BLE001 - the first error is the one to raise
        note_another(error, another)


class Moments:
    """Emits begin and end around every span that has them."""

    # Whoever resumes does so in on_loop_begin: only then it is known where the run goes on.
    run_loop = emitting(
        "run_loop", failing="on_exception", ready="ctx.began_at = ctx.position.global_step"
    )
    run_epoch = emitting("run_epoch")
    run_step = emitting("run_step")
    run_batch = emitting("run_batch")
    # An implementation of on_forward_end sees the outputs, and may put others in their place.
    forward = emitting("forward", keep="ctx.model_outs = value", value="ctx.model_outs")
    backward = emitting("backward")
    validate = emitting("validate")
    # on_optimizer_step_end sees the update counted; counting is needed although nobody listens.
    optimizer_step = emitting(
        "optimizer_step", keep="ctx.committed = value; ctx.updates += bool(value)"
    )


class TaskScope:
    """Opens the scope of a batch's task: inside it only that task's plugins hear batch events."""

    @hookimpl(wrapper=True, tryfirst=True)
    def run_batch(self, ctx: Context) -> Generator[None, Any, Any]:
        """Makes ``ctx.emit`` the task's for the length of a batch."""
        outer, ctx.emit = ctx.emit, ctx.bus.scopes[ctx.task]
        try:
            return (yield)
        finally:
            ctx.emit = outer
