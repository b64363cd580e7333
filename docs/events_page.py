"""The page `events.md`, made of what the code says about its events."""

from __future__ import annotations

import inspect
import re

from hatbus.events import ARGUMENTS, EVENTS, Event, training
from hatbus.events.payload import BATCH, LOOP, STEP

_HEAD = """\
<!-- Written by docs/refresh.py out of hatbus/events/training.py, on_demand.py and payload.py. -->

# Events

"""
_PARTS = {"When", "May change", "Returns", "On error"}


def events_page() -> str:
    """The whole page."""
    chapters = [_HEAD + markdown(training.__doc__ or ""), _overview(), _arguments()]
    chapters += ["## Each event", *(_section(event) for event in EVENTS.values())]
    return "\n\n".join(chapters) + "\n"


def markdown(docstring: str) -> str:
    """A docstring as Markdown: one backtick where it has two, literal blocks fenced."""
    lines = inspect.cleandoc(docstring).replace("``", "`").splitlines()
    text: list[str] = []
    code: list[str] = []
    for line in [*lines, ""]:
        if code and line and not line.startswith(" "):
            text += _fenced(code)
            code = []
        if text and text[-1].endswith("::") and not code:
            code = [""] if not line else [line]
        elif code:
            code.append(line)
        else:
            text.append(line)
    return re.sub(
        r"::$", ":", "\n".join(text + (_fenced(code) if code else [])), flags=re.M
    ).strip()


def _fenced(code: list[str]) -> list[str]:
    return ["", "```text", *inspect.cleandoc("\n" + "\n".join(code)).splitlines(), "```", ""]


def _overview() -> str:
    rows = [f"| [`{e.name}`](#{e.name}) | {e.kind} | {_first_line(e)} |" for e in EVENTS.values()]
    return "\n".join(
        ["## In the order of the loop", "", "| event | kind | what it is |", "|---|---|---|", *rows]
    )


def _arguments() -> str:
    rows = [
        f"| `{name}` | {_code(kind)} | {meaning} | {_carriers(name)} |"
        for name, (kind, meaning) in ARGUMENTS.items()
    ]
    return "\n".join(
        [
            "## Arguments",
            "",
            "One name has one type and one meaning in all events; an implementation names those it",
            "wants. Most are also attributes of `ctx`.",
            "",
            "| argument | type | meaning | in |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _carriers(name: str) -> str:
    """Which events carry an argument."""
    if name in LOOP:
        return "all events"
    if name in STEP:
        return "events of a step and of a batch"
    if name in BATCH:
        return "events of a batch"
    return ", ".join(f"`{e.name}`" for e in EVENTS.values() if name in e.arguments)


def _section(event: Event) -> str:
    """One event in full."""
    doc = inspect.cleandoc(event.doc).replace("``", "`")
    head, _, rest = doc.partition("\n\n")
    return "\n".join(
        [f"### {event.name}", "", f"*{event.kind}*: {head}", "", *_items(rest), _takes(event)]
    )


def _items(text: str) -> list[str]:
    """The parts of a docstring as a list; lines that go on are indented."""
    lines = []
    for line in text.splitlines():
        part, colon, said = line.partition(": ")
        if colon and part in _PARTS:
            lines.append(f"- **{part}**: {said}")
        else:
            lines.append(f"  {line}".rstrip())
    return lines


def _takes(event: Event) -> str:
    """The arguments, those that many events share summed up."""
    for carried, words in (
        (BATCH, "those of a batch"),
        (STEP, "those of a step"),
        (LOOP, "those of all events"),
    ):
        if event.arguments[: len(carried)] == carried:
            own = [f"`{name}`" for name in event.arguments[len(carried) :]]
            filtered = "; heard by plugins bound to its task, and by unbound ones"
            return f"- **Arguments**: {', '.join([words, *own])}" + (
                filtered if event.per_task else ""
            )
    raise AssertionError(event)


def _first_line(event: Event) -> str:
    return inspect.cleandoc(event.doc).partition("\n")[0].replace("``", "`").rstrip(".")


def _code(kind: str) -> str:
    return "`" + kind.replace("|", "\\|") + "`"
