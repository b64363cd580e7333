"""``hatbus explain JOB``: what will run when, and why there, before anything runs."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError
from hatbus.events.foreign_names import meant
from hatbus.events.training import EVENTS
from hatbus.insight.explanation import CORE

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.table import Table

    from hatbus.insight.explanation import Entry, Plan

_PADDING: Final = 2
"""Columns of the terminal that lie beside the text of a cell."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    from hatbus.cli.run import job_arguments

    job_arguments(parser)
    parser.add_argument("--event", metavar="NAME", help="this event only")
    parser.add_argument("--all", action="store_true", help="also events that no plugin uses")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--diff", metavar="OTHER_JOB", help="show what another job does otherwise")


def run(args: argparse.Namespace) -> int:
    """Prints the plan of a job.

    Raises:
        HatbusError: what is wrong with the job.
    """
    if args.event is not None and args.event not in EVENTS:
        raise JobError(f"unknown event {args.event!r}{meant(args.event)}")
    plan = plan_of_job(args.job, args.plugins, args.options, args.stage)
    if args.diff is not None:
        show_difference(plan, plan_of_job(args.diff, (), ()), args.job, args.diff)
    elif args.json:
        found = plan.as_json()
        if args.event is not None:
            found["events"] = {args.event: found["events"].get(args.event, [])}
        print(json.dumps(found, indent=2))
    else:
        show(plan, args.event, everything=args.all)
    return 0


def plan_of_job(job: str, plugins: Any, options: Any, stage: str | None = None) -> Plan:
    """Builds the job, without running it, and reads its plan off the bus."""
    from hatbus import discovery
    from hatbus.insight.explanation import plan_of
    from hatbus.jobs.preparing import prepare
    from hatbus.log import log

    prepared = prepare(job, tuple(plugins), tuple(options), stage)
    trainer = prepared.build()
    trainer.bus.set_tasks(trainer.ctx.data.tasks)
    for line in prepared.doubts(trainer):
        log.warning("%s", line)
    used = [found.name for found in prepared.found.values()]
    return plan_of(trainer.bus, [found.name for found in discovery.installed()], used)


def show(plan: Plan, event: str | None, *, everything: bool) -> None:
    """Prints the plugins in order, then who takes part in which event; or one event in full."""
    from rich.text import Text

    from hatbus.insight.terminal import terminal

    console = terminal()
    if event is not None:
        entries = plan.events.get(event, ())
        if entries:
            title = f"{event}, outermost first"
            console.print(_table(title, entries, console.width, roles=True))
        else:
            console.print(f"nobody takes part in {event}")
        return
    title = "plugins, in the order they have in every event"
    console.print(_table(title, plan.plugins, console.width))
    console.print()
    console.print(_events(plan, console.width, everything=everything))
    if plan.off:
        console.print(Text("installed but off: " + ", ".join(plan.off), "dim"))


def _table(title: str, entries: Sequence[Entry], width: int, *, roles: bool = False) -> Table:
    """A row per implementation, or per plugin."""
    heads = ["plugin", *(["does"] if roles else []), "why there", "only", "writes", "from"]
    rows = [
        [
            *([e.plugin, e.does] if roles else [e.plugin]),
            *("; ".join(e.why_here if roles else e.why), e.filters, ", ".join(e.writes), e.source),
        ]
        for e in entries
    ]
    filled = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    styles = ["dim" if e.source == CORE else "" for e in entries]
    cells = [[row[i] for i in filled] for row in rows]
    return _fitted(title, [heads[i] for i in filled], cells, styles, width)


def _events(plan: Plan, width: int, *, everything: bool) -> Table:
    """A row per event: what wraps it, and what runs inside."""
    rows = []
    for name, entries in plan.events.items():
        if not everything and all(e.source == CORE for e in entries):
            continue
        wrapping = [e for e in entries if e.does == "wraps" and (everything or e.source != CORE)]
        replaced = any(e.does == "replaces" for e in entries)
        inside = [
            e for e in entries if e.does != "wraps" and not (replaced and e.does == "default")
        ]
        rows.append([name, " > ".join(map(_name, wrapping)), ", ".join(map(_name, inside))])
    title = "events, in the order of the loop"
    return _fitted(title, ["event", "wrapped by", "runs"], rows, [""] * len(rows), width)


def _fitted(
    title: str, heads: list[str], rows: list[list[str]], styles: list[str], width: int
) -> Table:
    """A table inside the terminal's width; cells are folded, and nothing is cut off."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    columns = list(zip(heads, *rows, strict=True))
    widest = [max(map(cell_len, cells)) for cells in columns]
    words = [max(cell_len(w) for cell in cells for w in cell.split()) for cells in columns]
    room = width - len(heads) * _PADDING
    for head, own in zip(heads, column_widths(widest, words, room), strict=True):
        table.add_column(head, width=own, overflow="fold")
    for row, style in zip(rows, styles, strict=True):
        table.add_row(*(Text(cell, style) for cell in row))
    return table


def column_widths(widest: Sequence[int], words: Sequence[int], room: int) -> list[int]:
    """The columns' widths, the widest narrowed until all fit; words are broken only at the last.

    Args:
        widest: the longest cell of each column.
        words: the longest word of each column.
        room: for all columns together.
    """
    widths = list(widest)
    while sum(widths) > max(room, len(widths)):
        with_spare = [i for i, word in enumerate(words) if widths[i] > word]
        widths[max(with_spare or range(len(widths)), key=widths.__getitem__)] -= 1
    return widths


def _name(entry: Entry) -> str:
    if entry.source == CORE:
        return f"{entry.plugin} ({CORE})"
    turn = f" ({entry.turn})" if entry.turn else ""
    return entry.plugin + (f" [{', '.join(entry.tasks)}]" if entry.tasks else "") + turn


def show_difference(plan: Plan, other: Plan, name: str, other_name: str) -> None:
    """Prints what differs between two plans, as a unified diff."""
    lines = list(
        difflib.unified_diff(plan.lines(), other.lines(), name, other_name, lineterm="", n=1)
    )
    print("\n".join(lines) if lines else f"{name} and {other_name} run the same, in the same order")
