"""``hatbus plugins``: lists, shows and checks plugins without importing the ones listed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hatbus import discovery
from hatbus.cli.display import show_rows
from hatbus.discovery.entry_points import conflict_of, how_to_install, is_allowed
from hatbus.discovery.module_files import drawn, find_source, said, syntax_error
from hatbus.discovery.version_gate import misfit
from hatbus.errors import PluginError

if TYPE_CHECKING:
    import argparse

    from hatbus.authoring.own_file import OwnFile
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
        help="show: a plugin, or FILE.py:Class; check: a plugin, a distribution, a wheel, a folder "
        "with a pyproject.toml, or FILE.py[:Class]",
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
    from hatbus.authoring.own_file import own_file

    own = own_file(name)
    if own is not None:
        return show_own(own, as_json=as_json)
    offers = [found for found in discovery.installed() if found.name == name]
    if not offers:
        discovery.lookup(name)
    if as_json:
        _print_json([described(found) for found in offers])
        return 0
    print("\n\n".join(in_full(found) for found in offers))
    return 0


def show_own(own: OwnFile, *, as_json: bool) -> int:
    """Prints all that is known about the plugins of a file of the user's own."""
    from hatbus.bus.registration import in_snake_case

    found = own.classes()
    if as_json:
        data = [
            {
                "name": in_snake_case(cls.rpartition(".")[2]),
                "value": f"{own.file}:{cls}",
                **as_data(reading),
            }
            for cls, reading in found.items()
        ]
        _print_json(data)
        return 0
    texts = []
    for cls, reading in found.items():
        head = f"{in_snake_case(cls.rpartition('.')[2])}  ({own.file}:{cls})"
        how = f"in a job: -p {own.file}:{cls}, or use = '{own.file}:{cls}' in [plugins.NAME]"
        texts.append("\n".join([head, *facts(reading), how]))
    print("\n\n".join(texts))
    return 0


def in_full(found: Found) -> str:
    """One plugin as text."""
    reading = found.describe()
    lines = [f"{found.name}  ({found.value}, {found.source})"]
    if status_of(found):
        lines += [status_of(found)]
    if reading is None:
        return "\n".join([*lines, why_unread(found)])
    return "\n".join([*lines, *facts(reading)])


def why_unread(found: Found) -> str:
    """Why a plugin's source says nothing; a syntax error with its line and place."""
    file = find_source(found.module)
    error = None if file is None else syntax_error(file)
    if file is None or error is None:
        return "its source cannot be read" if file is None else found.summary()
    return f"{said(error, file)}{drawn(error)}"


def facts(reading: ClassSource) -> list[str]:
    """What the source of a class says, line by line."""
    lines: list[str] = []
    lines += ["", reading.doc, ""] if reading.doc else [""]
    lines += [f"{key}: {value}" for key, value in reading.declared.items()]
    lines += [f"events: {', '.join(reading.events) or 'none'}", "options:"]
    lines += _options(reading)
    return [*lines, f"file: {reading.file}:{reading.line}"]


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
    return data if reading is None else data | as_data(reading)


def as_data(reading: ClassSource) -> dict[str, Any]:
    """What the source of a class says, as plain data."""
    return {
        "doc": reading.doc,
        "declared": reading.declared,
        "events": reading.events,
        "parameters": [p._asdict() for p in reading.parameters],
        "file": str(reading.file),
        "line": reading.line,
    }


def _print_json(data: object) -> None:
    import json

    print(json.dumps(data, indent=2, default=str))
