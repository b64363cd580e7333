"""``EventLog``: a plugin that writes down every event, and assertions that show what it heard."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch

from hatbus import hookimpl, plugin
from hatbus.errors import did_you_mean
from hatbus.events import DECISION, EVENTS, MOMENT
from hatbus.testing.verdict import fail

_SHOWN: Final = 40


class Heard(NamedTuple):
    """One event that was heard.

    Attributes:
        event: its name.
        step: ``global_step_id``.
        epoch: ``epoch_id``.
        task: of the batch, or None.
        more: what only this event carries: ``reason``, ``path``, ``logs``, ``kind``, ``exception``.
    """

    event: str
    step: int
    epoch: int
    task: str | None
    more: dict[str, Any]

    def __str__(self) -> str:
        task = f" task {self.task!r}" if self.task else ""
        more = "".join(f" {name}={_brief(value)}" for name, value in self.more.items())
        return f"step {self.step}{task}: {self.event}{more}"


@plugin(stage="report")
class EventLog:
    """Writes down every event of a run, and changes nothing.

    >>> log = EventLog()
    >>> # tiny_trainer([MyPlugin(), log]).fit(num_steps=3)
    >>> # log.assert_order("on_loop_begin", "on_step_end", "on_loop_end")

    Attributes:
        heard: the events in the order in which they were heard; a span when it begins.
    """

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self._losses: list[dict[str, torch.Tensor]] = []

    @property
    def events(self) -> list[str]:
        """The names alone."""
        return [one.event for one in self.heard]

    @property
    def losses(self) -> list[dict[str, float]]:
        """The losses of every step, by name."""
        return [{name: float(loss) for name, loss in step.items()} for step in self._losses]

    def of(self, event: str, task: str | None = None) -> list[Heard]:
        """Everything heard of one event; with a task, of that task's batches only."""
        if event not in EVENTS:
            fail(f"unknown event {event!r}{did_you_mean(event, EVENTS)}")
        return [one for one in self.heard if one.event == event and task in (None, one.task)]

    def count(self, event: str, task: str | None = None) -> int:
        """How often an event was heard."""
        return len(self.of(event, task))

    def steps(self, event: str) -> list[int]:
        """The steps (``global_step_id``) of an event."""
        return [one.step for one in self.of(event)]

    def published(self, name: str) -> list[tuple[int, Any]]:
        """Step and value of everything that was published under a name; numbers as floats."""
        return [
            (one.step, _plain(one.more["logs"][name]))
            for one in self.of("on_log")
            if name in one.more["logs"]
        ]

    def assert_count(self, event: str, count: int, task: str | None = None) -> None:
        """An event was heard so many times."""
        found = self.count(event, task)
        if found != count:
            self._fail(f"{event} was heard {found} times, not {count}")

    def assert_order(self, *events: str) -> None:
        """These events were heard in this order; others may lie between them."""
        at = 0
        for index, event in enumerate(events):
            self.of(event)
            while at < len(self.heard) and self.heard[at].event != event:
                at += 1
            if at == len(self.heard):
                before = f" after {events[index - 1]}" if index else ""
                self._fail(f"{event} was not heard{before}")
            at += 1

    def assert_published(self, name: str, steps: list[int] | None = None) -> None:
        """A value was published, at these steps if they are given."""
        found = [step for step, _ in self.published(name)]
        if not found:
            known = {key for one in self.of("on_log") for key in one.more["logs"]}
            fail(f"nothing was published as {name!r}{did_you_mean(name, known)}")
        if steps is not None and found != steps:
            fail(f"{name!r} was published at steps {found}, not {steps}")

    def text(self, most: int = _SHOWN) -> str:
        """What was heard, a line each; ``most`` lines."""
        lines = [str(one) for one in self.heard[:most]]
        left = len(self.heard) - len(lines)
        return "\n".join([*lines, *([f"... and {left} more"] if left else [])])

    def note(self, event: str, given: dict[str, Any]) -> None:
        """Writes one event down."""
        ctx = given["ctx"]
        more = {name: value for name, value in given.items() if name in _MORE}
        self.heard.append(Heard(event, ctx.global_step_id, ctx.epoch_id, ctx.task, more))
        if event == "on_step_end":
            self._losses.append({n: loss.detach().clone() for n, loss in ctx.losses.items()})

    def _fail(self, message: str) -> None:
        fail(f"{message}; heard:\n{self.text()}")


_MORE: Final = ("reason", "path", "logs", "kind", "exception")


def _listener(event: str) -> Any:
    """An implementation that writes the event down and otherwise does nothing."""
    more = [name for name in EVENTS[event].arguments if name in _MORE]
    given = ", ".join(f"{name!r}: {name}" for name in ("ctx", *more))
    body = f"self.note({event!r}, {{{given}}})"
    is_span = EVENTS[event].kind not in (MOMENT, DECISION)
    if is_span:
        body += "\n    return (yield)"
    names: dict[str, Any] = {}
    exec(f"def {event}(self, {', '.join(('ctx', *more))}):\n    {body}", names)  # noqa: S102 - the two lines above
    return hookimpl(names[event], wrapper=is_span)


for _name in EVENTS:
    setattr(EventLog, _name, _listener(_name))


def _plain(value: Any) -> Any:
    is_number = isinstance(value, torch.Tensor) and value.numel() == 1
    return float(value) if is_number or isinstance(value, int) else value


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_brief(v)}" for k, v in value.items()) + "}"
    if isinstance(value, torch.Tensor):
        number = value.numel() == 1
        return f"{value.item():.4g}" if number else f"<tensor {tuple(value.shape)}>"
    return f"{value!r:.60}"
