"""Frozen dispatch: one callable per event that does what pluggy would do, at the cost of calls.

pluggy finds out at every call which implementations there are, which arguments each wants and
which of them are wrappers. None of that changes once the last plugin is registered, so ``freeze``
writes it down as the Python source of a function. For two plugins on ``on_step_end``::

    def on_step_end(ctx):
        optimizer = ctx.optimizer
        losses = ctx.losses
        try:
            f0(optimizer)
            f1(optimizer, losses)
        except BaseException as error:
            fail(error, ctx)
            raise

Arguments are attributes of the context, except the ones that only some events carry (``path``,
``logs``), which are parameters. Each call stands on a line of its own: the line number in a
traceback names the plugin, so a run without errors pays nothing for good error messages.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import finalize

from hatbus.bus.blame import acquit, blame, came_out_of, frozen_line, note_another
from hatbus.bus.frozen_source import Frozen, Source, arguments, begin, parameters, wanted
from hatbus.bus.unprovided import unprovided
from hatbus.errors import HookError
from hatbus.events import answers
from hatbus.events.training import DECISION, MOMENT, SPAN

if TYPE_CHECKING:
    from pluggy import HookImpl

    from hatbus.events.training import Event


class Gate:
    """Whether a plugin with an interval is due; its calls are passed over while it is shut."""

    __slots__ = ("is_open",)

    def __init__(self) -> None:
        self.is_open = True


@dataclass(frozen=True, slots=True)
class Rules:
    """How to freeze.

    Attributes:
        gates: plugin name to gate, for plugins with an interval.
        strict: refuse results of moments.
        callers: filled with filename to the plugin name on each line, for ``caller_name``; an
            entry goes when its function does.
        instrument: gives the function to call in place of a plugin's, to measure it.
    """

    gates: Mapping[str, Gate] = field(default_factory=dict)
    strict: bool = False
    callers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    instrument: Callable[[Event, HookImpl], Frozen] | None = None

    def function(self, event: Event, impl: HookImpl) -> Frozen:
        """What to call for an implementation."""
        if self.instrument is None or impl.plugin_name.startswith("core."):
            return impl.function
        return self.instrument(event, impl)

    def is_due(self, impl: HookImpl) -> bool:
        """Whether an implementation is to be called now."""
        gate = self.gates.get(impl.plugin_name)
        return gate is None or gate.is_open


def freeze(event: Event, impls: Sequence[HookImpl], rules: Rules | None = None) -> Frozen | None:
    """Writes the dispatch function of one event.

    Args:
        event: the event.
        impls: its implementations in pluggy's order (``HookCaller.get_hookimpls``: last runs
            first).
        rules: gates, strictness, instrument.

    Returns:
        ``f(ctx, *more)``, or None when there is nothing to call; a span can always be called.
    """
    ordered = list(reversed(impls))
    if not ordered and event.kind != SPAN:
        return None
    rules = rules or Rules()
    calls = [impl for impl in ordered if not impl.wrapper]
    if event.kind == SPAN and len(calls) == 1 and _is_plain_core(event, calls[0]):
        body = calls[0].function  # nothing to choose, and nobody to blame
        acquit(body)
    elif event.kind == SPAN and not calls:
        body = unprovided(event)
        acquit(body)
    else:
        body = _write_calls(event, calls, rules)
    for impl in reversed([i for i in ordered if i.wrapper]):
        around = getattr(impl.function, "around", None)
        # One of the core's own has a plain form.
        body = around(impl.plugin, body) if around else _write_wrapper(event, impl, body, rules)
    return body


def _is_plain_core(event: Event, impl: HookImpl) -> bool:
    """Whether an implementation is the core's own and takes just what dispatch is given."""
    return impl.plugin_name.startswith("core.") and [*impl.argnames] == ["ctx", *parameters(event)]


def _write_calls(event: Event, impls: list[HookImpl], rules: Rules) -> Frozen:
    """The function that calls every implementation that is no wrapper."""
    source = begin(event, impls)
    if event.kind == DECISION:
        source.add(1, "found = []")
    source.add(1, "try:" if impls else "pass")
    for index, impl in enumerate(impls):
        source.names[f"f{index}"] = rules.function(event, impl)
        indent = 2
        if impl.plugin_name in rules.gates:
            source.names[f"g{index}"] = rules.gates[impl.plugin_name]
            source.add(2, f"if g{index}.is_open:")
            indent = 3
        _write_call(source, indent, index, impl, strict=rules.strict)
    if impls:
        _write_failure(source, impls, rules)
    if event.kind == DECISION:
        source.add(1, "return found")
    return _finish(source, rules)


_MAY_CHANGE: Final = {
    "on_batch_begin": ("batch",),
    "on_forward_begin": ("batch",),
    "on_forward_end": ("model_outs",),
}
"""What an implementation may put another in the place of, for those that come after it."""


def _write_call(source: Source, indent: int, index: int, impl: HookImpl, *, strict: bool) -> None:
    call = f"f{index}({arguments(source.event, impl)})"
    kind = source.event.kind
    if index:
        for name in _MAY_CHANGE.get(source.event.name, ()):
            if name in wanted(source.event, impl):
                source.add(indent, f"{name} = ctx.{name}")
    if kind == SPAN:
        source.add(indent, f"result = {call}", impl)
        source.add(indent, "if result is not None:")
        source.add(indent + 1, "return result")
        if not impl.plugin_name.startswith("core."):
            source.add(indent, f"refuse_none({index})", impl)
    elif kind == DECISION:
        source.add(indent, f"result = {call}", impl)
        source.add(indent, "if result is not None:")
        source.add(indent + 1, f"found.append(answer({index}, result))", impl)
    elif strict:
        source.add(indent, f"result = {call}", impl)
        source.add(indent, "if result is not None:")
        source.add(indent + 1, f"refuse_result({index}, result)", impl)
    else:
        source.add(indent, call, impl)


def _write_failure(
    source: Source, impls: list[HookImpl], rules: Rules, inside: tuple[int, Frozen] | None = None
) -> None:
    """What happens when an implementation raises; costs nothing until then.

    ``inside`` is what a wrapper surrounds, and the line that calls it. An error that came out of
    it and merely passes through the wrapper is not the wrapper's.
    """
    event, filename, calls = source.event, source.filename, source.calls

    def fail(error: BaseException, ctx: Any) -> int:
        impl = calls.get(frozen_line(error.__traceback__, filename))
        passes = inside is not None and came_out_of(error.__traceback__, filename, inside[0])
        if impl is None or passes:
            return len(impls)
        blame(error, impl, event.name, ctx)
        return impls.index(impl)

    def call_the_rest(error: BaseException, ctx: Any, *more: Any) -> None:
        due = [impl for impl in impls[fail(error, ctx) + 1 :] if rules.is_due(impl)]
        rest = [partial(_call_alone, event, impl, ctx, more) for impl in due]
        if inside is not None and frozen_line(error.__traceback__, filename) < inside[0]:
            rest.append(partial(inside[1], ctx, *more))
        outer = getattr(ctx, "exception", None)
        ctx.exception = outer or error
        for call in rest:
            try:
                call()
            except BaseException as another:  # noqa: BLE001 - every teardown runs; the first error counts
                note_another(error, another)
        ctx.exception = outer

    source.names.update(
        fail=fail,
        call_the_rest=call_the_rest,
        refuse_none=lambda index: answers.refuse_none(event, impls[index]),
        refuse_result=lambda index, result: answers.refuse_result(event, impls[index], result),
        answer=lambda index, result: answers.answer(event, impls[index], result),
    )
    source.add(1, "except BaseException as error:")
    if event.kind == MOMENT and (event.name.endswith("_end") or event.name == "on_exception"):
        more = "".join(f", {name}" for name in parameters(event))
        source.add(2, f"call_the_rest(error, ctx{more})")
    else:
        source.add(2, "fail(error, ctx)")
    source.add(2, "raise")


def _write_wrapper(event: Event, impl: HookImpl, body: Frozen, rules: Rules) -> Frozen:
    """The function that runs one generator around everything inside it."""
    source = begin(event, [impl])
    source.names.update(wrapper=rules.function(event, impl), body=body, leave=_leave_with)
    passed = "".join(f", {name}" for name in parameters(event))
    if impl.plugin_name in rules.gates:
        source.names["gate"] = rules.gates[impl.plugin_name]
        source.add(1, "if not gate.is_open:")
        source.add(2, f"return body(ctx{passed})")
    source.add(1, "try:")
    source.add(2, f"generator = wrapper({arguments(event, impl)})", impl)
    source.add(2, "try:")
    source.add(3, "next(generator)", impl)
    source.add(2, "except StopIteration:")
    source.add(3, "no_yield()", impl)
    source.add(2, "try:")
    source.add(3, f"result = body(ctx{passed})")
    inside = len(source.lines), body
    source.add(2, "except BaseException as error:")
    source.add(3, "result = leave(generator, error)", impl)
    _write_check(source, impl, "result")
    source.add(3, "return result")
    source.add(2, "try:")
    source.add(3, "generator.send(result)", impl)
    source.add(2, "except StopIteration as stop:")
    _write_check(source, impl, "stop.value")
    source.add(3, "return stop.value")
    source.add(2, "second_yield(generator)", impl)
    source.names.update(
        refuse_answers=lambda found: answers.refuse_answers(event, impl, found),
        no_yield=lambda: answers.wrong_yields(event, impl, "did not yield"),
        second_yield=lambda generator: answers.second_yield(event, impl, generator),
    )
    _write_failure(source, [impl], rules, inside)
    return _finish(source, rules)


def _write_check(source: Source, impl: HookImpl, value: str) -> None:
    """Refuses what a plugin's wrapper may not return."""
    if impl.plugin_name.startswith("core."):
        return
    if source.event.kind == SPAN:
        source.add(3, f"if {value} is None:")
        source.add(4, "refuse_none(0)", impl)
    elif source.event.kind == DECISION:
        source.add(3, f"if not isinstance({value}, list):")
        source.add(4, f"refuse_answers({value})", impl)


def _leave_with(generator: Any, error: BaseException) -> Any:
    """Gives the error to the wrapper; returns the result that a wrapper put in its place."""
    try:
        generator.throw(error)
    except StopIteration as stop:
        if stop is error:
            raise
        return stop.value
    except RuntimeError as raised:
        if isinstance(error, StopIteration) and raised.__cause__ is error:
            raise error from None  # a StopIteration that passed through a generator untouched
        raise
    generator.close()
    raise HookError("a hook wrapper yielded twice; yield once")


def _finish(source: Source, rules: Rules) -> Frozen:
    at = {line: impl.plugin_name for line, impl in source.calls.items()}
    rules.callers[source.filename] = tuple(at.get(n, "") for n in range(len(source.lines) + 1))
    frozen = source.compile()
    finalize(frozen, _forget, source.filename, rules.callers).atexit = False
    return frozen


def _forget(filename: str, callers: dict[str, tuple[str, ...]]) -> None:
    """A frozen function is gone; one that was replaced may run for a while yet."""
    linecache.cache.pop(filename, None)
    callers.pop(filename, None)


def _call_alone(event: Event, impl: HookImpl, ctx: Any, more: tuple[Any, ...]) -> None:
    """Calls one implementation with what it wants."""
    given = {"ctx": ctx, **dict(zip(parameters(event), more, strict=True))}
    takes = {n: given[n] if n in given else getattr(ctx, n) for n in wanted(event, impl)}
    try:
        impl.function(**takes)
    except BaseException as error:
        blame(error, impl, event.name, ctx)
        raise
