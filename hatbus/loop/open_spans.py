"""Spans whose work a loop does that somebody else owns: opened at one place, left at another.

In such a loop nothing can be called around the work: its begin and its end are two notices. Here
the begin of a span enters every wrapper that stands around it on the bus, outermost first, and its
end leaves them in reverse: moments (with ``hatbus.bus.Moments`` registered), intervals, and those
of plugins.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hatbus.bus.blame import blame, note_another
from hatbus.bus.member import is_core
from hatbus.errors import HookError
from hatbus.events import answers
from hatbus.events.training import EVENTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pluggy import HookImpl

    from hatbus.loop.context import Context

Wrapper = Generator[None, Any, Any]


class _Open(NamedTuple):
    """A span that was entered, and its wrappers, outermost first."""

    span: str
    wrappers: list[tuple[HookImpl, Wrapper]]


class OpenSpans:
    """The spans of a run that are open just now.

    ``with ctx.within(span)`` is the simpler way where begin and end stand in one function; it emits
    moments only. A plugin that *replaces* a span is never heard here: its work is somebody else's.

    Args:
        ctx: of the run; its bus holds ``Moments``, if moments are wanted.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx: Final = ctx
        self._open: Final[list[_Open]] = []
        self._around: dict[str, list[HookImpl]] = {}
        self._freezes = -1

    @property
    def names(self) -> tuple[str, ...]:
        """What is open, outermost first."""
        return tuple(one.span for one in self._open)

    def is_open(self, span: str) -> bool:
        """Whether a span is open."""
        return any(one.span == span for one in self._open)

    def enter(self, span: str, **more: Any) -> None:
        """Begins a span.

        Args:
            span: such as ``"run_step"``.
            more: the span's arguments that are no attributes of the context, such as ``reason``.

        Raises:
            Exception: what a plugin raised; then ``fail`` is to be called.
        """
        opened = _Open(span, [])
        self._open.append(opened)
        for impl in self._wrappers(span):
            if self._is_idle(impl):
                continue
            wrapper: Any = impl.function(**self._arguments(impl, more))
            opened.wrappers.append((impl, wrapper))
            try:
                next(wrapper)
            except StopIteration:
                answers.wrong_yields(EVENTS[span], impl, "did not yield")
            except BaseException as error:
                self._blame(error, impl, span)
                raise

    def leave(self, span: str, result: Any = True) -> Any:
        """Ends the innermost open span.

        Args:
            span: its name.
            result: of its work; a span never has None.

        Returns:
            The result, or what a wrapper has put in its place.

        Raises:
            HookError: another span is the innermost.
            Exception: what a plugin raised; all wrappers of this span were told.
        """
        if not self._open or self._open[-1].span != span:
            raise HookError(f"{span!r} cannot be left; open, outermost first: {list(self.names)}")
        opened = self._open.pop()
        error: BaseException | None = None
        for impl, wrapper in reversed(opened.wrappers):
            try:
                result = self._left(impl, wrapper, span, result, error)
                error = None
            except BaseException as raised:  # noqa: BLE001 - the outer wrappers see it, then the caller
                if raised is not error:
                    self._blame(raised, impl, span)
                error = raised
        if error is not None:
            raise error
        return result

    def fail(self, error: BaseException) -> None:
        """Ends everything that is open with an error, innermost first; a second error is noted.

        Args:
            error: what ended the run; it is for the caller to raise.
        """
        while self._open:
            opened = self._open.pop()
            for _, wrapper in reversed(opened.wrappers):
                try:
                    wrapper.throw(error)
                except StopIteration:
                    continue
                except BaseException as another:  # noqa: BLE001 - every end runs; the first error counts
                    if another is not error:
                        note_another(error, another)
                else:
                    wrapper.close()

    def _left(
        self, impl: HookImpl, wrapper: Wrapper, span: str, result: Any, error: BaseException | None
    ) -> Any:
        """The result after one wrapper."""
        try:
            if error is None:
                wrapper.send(result)
            else:
                wrapper.throw(error)
        except StopIteration as stop:
            if stop.value is None and not is_core(impl.plugin_name):
                answers.refuse_none(EVENTS[span], impl)
            return stop.value
        return answers.second_yield(EVENTS[span], impl, wrapper)

    def _wrappers(self, span: str) -> list[HookImpl]:
        bus = self._ctx.bus
        if self._freezes != bus.freezes:
            self._around.clear()
            self._freezes = bus.freezes
        if span not in self._around:
            found = bus.implementations(span, self._ctx.task)
            self._around[span] = [impl for impl in found if impl.wrapper]
            self._freezes = bus.freezes
        return self._around[span]

    def _is_idle(self, impl: HookImpl) -> bool:
        """Whether a wrapper has nothing to do: not due, or nobody hears its moments."""
        gate = self._ctx.bus.gates.get(impl.plugin_name)
        if gate is not None and not gate.is_open:
            return True
        moments = getattr(impl.function, "moments", ())
        return bool(moments) and all(getattr(self._ctx.emit, name) is None for name in moments)

    def _arguments(self, impl: HookImpl, more: Mapping[str, Any]) -> dict[str, Any]:
        given = {"ctx": self._ctx, **more}
        names = impl.argnames
        return {n: given[n] if n in given else getattr(self._ctx, n) for n in names}

    def _blame(self, error: BaseException, impl: HookImpl, span: str) -> None:
        if not is_core(impl.plugin_name):
            blame(error, impl, span, self._ctx)
