"""What an implementation may return and a wrapper may do, and the errors that say it did not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hatbus.errors import HookError

if TYPE_CHECKING:
    from pluggy import HookImpl

    from hatbus.events.training import Event


def _who(impl: HookImpl, event: Event) -> str:
    return f"plugin {impl.plugin_name!r}: {event.name}"


def refuse_none(event: Event, impl: HookImpl) -> None:
    """A span's result is None, for pluggy no result."""
    raise HookError(
        f"{_who(impl, event)} is a span and returned None; return its result ({event.name} "
        f"returns one, see `hatbus events`), or from a wrapper what `yield` gave"
    )


def refuse_result(event: Event, impl: HookImpl, result: Any) -> None:
    """A moment has a result, in strict mode."""
    raise HookError(
        f"{_who(impl, event)} is a moment and returned {result!r}; a moment returns nothing"
    )


def answer(event: Event, impl: HookImpl, result: Any) -> tuple[str, str]:
    """An answer to a decision with the name of who gave it."""
    if not isinstance(result, str):
        raise HookError(
            f"{_who(impl, event)} is a decision and returned {result!r}; "
            "accepted: a reason (a string) for yes, or None for no"
        )
    return impl.plugin_name, result


def refuse_answers(event: Event, impl: HookImpl, found: Any) -> None:
    """A decision's wrapper returned no list of answers."""
    raise HookError(
        f"{_who(impl, event)} is a decision and its wrapper returned {found!r}; return the list "
        "that `yield` gave, or another list of (name, reason)"
    )


def wrong_yields(event: Event, impl: HookImpl, fault: str) -> None:
    """A wrapper did not yield once."""
    raise HookError(f"{_who(impl, event)} is a wrapper and {fault}; yield exactly once") from None


def second_yield(event: Event, impl: HookImpl, generator: Any) -> None:
    """A wrapper goes on where it should end."""
    generator.close()
    wrong_yields(event, impl, "yielded twice")
