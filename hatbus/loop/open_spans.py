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
from hatbus.bus.moments import Halves
from hatbus.errors import HookError
from hatbus.events import answers
from hatbus.events.training import EVENTS, PAIRS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pluggy import HookImpl

    from hatbus.bus.bus import Emitter
    from hatbus.bus.dispatch import Gate
    from hatbus.loop.context import Context

Wrapper = Generator[None, Any, Any]
_CTX: Final = ("ctx",)
Entered = tuple["HookImpl", "Wrapper | Halves"]


class _Around(NamedTuple):
    """A wrapper that stands around a span, and what is to be known of it at every call."""

    impl: HookImpl
    function: Callable[..., Any]
    names: tuple[str, ...]
    gate: Gate | None
    halves: tuple[HookImpl, Halves] | None


class OpenSpans:
    """The spans of a run that are open just now.

    ``with ctx.within(span)`` is the simpler way where begin and end stand in one function; it emits
    moments only. A plugin that *replaces* a span is never heard here: its work is somebody else's.

    Args:
        ctx: of the run; its bus holds ``Moments``, if moments are wanted.

    Attributes:
        is_open: given a span's name, says whether it is open.
        opened: what is open, outermost first, and what was entered with it. A loop in which every
            microsecond counts puts a span there itself: see ``plain``.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx: Final = ctx
        self.opened: Final[dict[str, Sequence[Entered]]] = {}
        self.is_open: Final[Callable[[str], bool]] = self.opened.__contains__
        self._around: dict[tuple[str, str | None], list[_Around]] = {}
        self._freezes = -1

    @property
    def names(self) -> tuple[str, ...]:
        """What is open, outermost first."""
        return tuple(self.opened)

    def is_heard(self, span: str) -> bool:
        """Whether anybody hears of a span: its begin, its end, or by a wrapper around it."""
        ctx = self._ctx
        hears = any(getattr(ctx.emit, name) is not None for name in PAIRS.get(span, ()))
        return hears or any(around.halves is None for around in self._look(span))

    def plain(self, span: str) -> Sequence[Entered] | None:
        """What is to stand in ``opened`` for a span whose begin emits a moment and does no more.

        A loop may begin such a span without ``enter``: it puts this there, emits the begin if
        ``ctx.emit`` has it, and calls ``fail_begin`` if that fails. To end it without ``leave``, it
        takes this out again, as the last that is there, and calls the ``finish`` of every
        ``Halves`` in it. To be asked anew when ``ctx.bus.freezes`` is another number.

        Args:
            span: such as ``"run_step"``.

        Returns:
            None where something else stands around the span: only ``enter`` knows what it does.
        """
        found = self._look(span)
        is_plain = all(getattr(one.function, "unless_kept", ()) for one in found)
        return [one.halves for one in found if one.halves is not None] if is_plain else None

    def fail_begin(self, error: BaseException) -> None:
        """Ends with an error what is around the innermost span, whose begin failed; it stays open.

        Args:
            error: which; it is for the caller to raise, and then to be given to ``fail``.
        """
        span, entered = self.opened.popitem()
        self.opened[span] = []
        for _, wrapper in reversed(entered):
            if isinstance(wrapper, Halves):
                wrapper.fail(self._ctx, error)

    def enter(self, span: str, **more: Any) -> None:
        """Begins a span.

        Args:
            span: such as ``"run_step"``.
            more: the span's arguments that are no attributes of the context, such as ``reason``.

        Raises:
            HookError: it is open already.
            Exception: what a plugin raised; then ``fail`` is to be called.
        """
        ctx = self._ctx
        if span in self.opened:
            raise HookError(f"{span!r} is open already; open, outermost first: {[*self.opened]}")
        entered: list[Entered] = []
        self.opened[span] = entered
        if self._freezes != ctx.bus.freezes:
            self._around.clear()
        try:
            found = self._around[span, ctx.task]
        except KeyError:
            found = self._look(span)
        for around in found:
            if around.halves is not None:
                try:
                    around.halves[1].begin(ctx)
                except BaseException as error:
                    around.halves[1].fail(ctx, error)
                    raise
                entered.append(around.halves)
            elif around.gate is None or around.gate.is_open:
                self._enter(around, span, more, entered)

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
        innermost, wrappers = self.opened.popitem() if self.opened else ("", [])
        if innermost != span:
            if innermost:
                self.opened[innermost] = wrappers
            raise HookError(f"{span!r} cannot be left; open, outermost first: {[*self.opened]}")
        error: BaseException | None = None
        for impl, wrapper in reversed(wrappers):
            try:
                if type(wrapper) is not Halves:
                    result = self._left(impl, wrapper, span, result, error)
                    error = None
                elif error is None:
                    result = wrapper.finish(self._ctx, result)
                else:
                    wrapper.fail(self._ctx, error)
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
        while self.opened:
            _, wrappers = self.opened.popitem()
            for _, wrapper in reversed(wrappers):
                try:
                    if isinstance(wrapper, Halves):
                        wrapper.fail(self._ctx, error)
                        continue
                    wrapper.throw(error)
                except StopIteration:
                    continue
                except BaseException as another:  # noqa: BLE001 - every end runs; the first error counts
                    if another is not error:
                        note_another(error, another)
                else:
                    wrapper.close()

    def _enter(
        self, around: _Around, span: str, more: dict[str, Any], entered: list[Entered]
    ) -> None:
        """Enters a plugin's wrapper."""
        ctx = self._ctx
        if around.names == _CTX:
            wrapper: Wrapper = around.function(ctx)
        else:
            given = {n: more[n] if n in more else _read(ctx, n) for n in around.names}
            wrapper = around.function(**given)
        entered.append((around.impl, wrapper))
        try:
            next(wrapper)
        except StopIteration:
            answers.wrong_yields(EVENTS[span], around.impl, "did not yield")
        except BaseException as error:
            self._blame(error, around.impl, span)
            raise

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

    def _look(self, span: str) -> list[_Around]:
        """Finds the wrappers of a span, but those whose moments nobody hears."""
        ctx, bus = self._ctx, self._ctx.bus
        found = [impl for impl in bus.implementations(span, ctx.task) if impl.wrapper]
        if self._freezes != bus.freezes:
            self._around.clear()
            self._freezes = bus.freezes
        self._around[span, ctx.task] = [
            _around(impl, bus.gates.get(impl.plugin_name))
            for impl in found
            if _is_needed(impl, ctx.emit)
        ]
        return self._around[span, ctx.task]

    def _blame(self, error: BaseException, impl: HookImpl, span: str) -> None:
        if not is_core(impl.plugin_name):
            blame(error, impl, span, self._ctx)


def _around(impl: HookImpl, gate: Gate | None) -> _Around:
    halves = getattr(impl.function, "halves", None)
    pair = None if halves is None else (impl, halves)
    return _Around(impl, impl.function, tuple(impl.argnames), gate, pair)


def _is_needed(impl: HookImpl, emit: Emitter) -> bool:
    """Whether a wrapper has anything to do: one that only emits moments may be heard by nobody."""
    moments = getattr(impl.function, "moments", ())
    return not moments or any(getattr(emit, name) is not None for name in moments)


def _read(ctx: Context, name: str) -> Any:
    return ctx if name == "ctx" else getattr(ctx, name)
