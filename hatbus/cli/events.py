"""``hatbus events``: the events, their arguments and what an implementation may do."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from hatbus.cli.display import show_rows
from hatbus.errors import PluginError
from hatbus.events.foreign_names import meant
from hatbus.events.payload import ARGUMENTS, DEPRECATED
from hatbus.events.training import EVENTS

if TYPE_CHECKING:
    import argparse

    from hatbus.events.training import Event


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="one event, in full")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints all events in the order of the loop, or one in full.

    Raises:
        PluginError: there is no such event.
    """
    if args.name is not None and args.name not in EVENTS:
        raise PluginError(f"unknown event {args.name!r}{meant(args.name)}")
    chosen = [EVENTS[args.name]] if args.name else list(EVENTS.values())
    if args.json:
        print(json.dumps([as_json(event) for event in chosen], indent=2))
    elif args.name:
        print(in_full(chosen[0]))
    else:
        show_rows([(e.name, e.kind, _doc(e).partition("\n")[0]) for e in chosen])
    return 0


def as_json(event: Event) -> dict[str, Any]:
    """One event as plain data."""
    described = [
        {"name": name, "type": ARGUMENTS[name][0], "meaning": ARGUMENTS[name][1]}
        for name in event.arguments
    ]
    return {
        "name": event.name,
        "kind": event.kind,
        "per_task": event.per_task,
        "doc": _doc(event),
        "arguments": described,
    }


def in_full(event: Event) -> str:
    """One event with its documentation and its arguments."""
    lines = [f"{event.name} ({event.kind})", "", _doc(event), "", "Arguments:"]
    width = max(len(name) for name in event.arguments) + 2
    for name in event.arguments:
        kind, meaning = ARGUMENTS[name]
        going = DEPRECATED.get(name)
        note = f" (deprecated since {going.since}; use {going.use})" if going else ""
        lines.append(f"  {name:<{width}}{kind}: {meaning}{note}")
    return "\n".join(lines)


def _doc(event: Event) -> str:
    return inspect.cleandoc(event.doc)
