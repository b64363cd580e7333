"""``hatbus plugins``: lists, shows and checks plugins without importing the ones listed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hatbus import discovery
from hatbus.cli.display import show_rows
from hatbus.discovery.entry_points import conflict_of, how_to_install, is_allowed
from hatbus.discovery.version_gate import misfit
from hatbus.errors import PluginError

if TYPE_CHECKING:
    import argparse

    from hatbus.discovery.class_source import ClassSource
    from hatbus.discovery.entry_points import Found

_WHAT = ("list", "show", "check")


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "what", nargs="?", choices=_WHAT, default="list", help="what to do (default: list)"
    )
    parser.add_argument(
        "name",
        nargs="?",
        help="show: a plugin; check: a plugin, a distribution, a wheel, or a folder with a "
        "pyproject.toml",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Does one of the three.

    Raises:
        PluginError: no such plugin, or the name is missing.
    """
    if args.what == "list":
        return show_all(as_json=args.json)
    if args.name is None:
        what = (
            "a plugin" if args.what == "show" else "a plugin, a distribution, a wheel or a folder"
        )
        raise PluginError(f"hatbus plugins {args.what}: give {what}")
    if args.what == "show":
        return show_one(args.name, as_json=args.json)
    from hatbus.cli.check import check_and_show

    return check_and_show(args.name, as_json=args.json)


def show_all(*, as_json: bool) -> int:
    """Prints a line for every installed plugin, what is wrong with its name included."""
    found = discovery.installed()
    if as_json:
        _print_json([described(one) for one in found])
    elif not found:
        print(how_to_install())
    else:
        show_rows([(one.name, one.source, status_of(one) or one.summary()) for one in found])
    return 0


def status_of(found: Found) -> str:
    """Why a plugin cannot be used; empty if it can."""
    offers = [one for one in discovery.installed() if one.name == found.name]
    conflict = conflict_of(offers)
    if conflict:
        return f"conflict: {conflict}"
    return misfit(found) if is_allowed(found) else f"refused by {discovery.ALLOW}"


def show_one(name: str, *, as_json: bool) -> int:
    """Prints all that is known about one plugin."""
    offers = [found for found in discovery.installed() if found.name == name]
    if not offers:
        discovery.lookup(name)
    if as_json:
        _print_json([described(found) for found in offers])
        return 0
    print("\n\n".join(in_full(found) for found in offers))
    return 0


def in_full(found: Found) -> str:
    """One plugin as text."""
    reading = found.describe()
    lines = [f"{found.name}  ({found.value}, {found.source})"]
    if status_of(found):
        lines += [status_of(found)]
    if reading is None:
        return "\n".join([*lines, "its source cannot be read"])
    lines += ["", reading.doc, ""] if reading.doc else [""]
    lines += [f"{key}: {value}" for key, value in reading.declared.items()]
    lines += [f"events: {', '.join(reading.events) or 'none'}", "options:"]
    lines += _options(reading)
    return "\n".join([*lines, f"file: {reading.file}:{reading.line}"])


def _options(reading: ClassSource) -> list[str]:
    """The constructor's parameters as they are written in a job."""
    if not reading.parameters:
        return ["  none"]
    return [
        f"  {p.name}"
        + (f": {p.annotation}" if p.annotation else "")
        + (" (required)" if p.default is None else f" = {p.default}" if p.default else "")
        for p in reading.parameters
    ]


def described(found: Found) -> dict[str, Any]:
    """One plugin as plain data."""
    reading = found.describe()
    data: dict[str, Any] = {
        "name": found.name,
        "value": found.value,
        "distribution": found.distribution,
        "version": found.version,
        "status": status_of(found),
    }
    if reading is not None:
        data |= {
            "doc": reading.doc,
            "declared": reading.declared,
            "events": reading.events,
            "parameters": [p._asdict() for p in reading.parameters],
            "file": str(reading.file),
            "line": reading.line,
        }
    return data


def _print_json(data: object) -> None:
    import json

    print(json.dumps(data, indent=2, default=str))
