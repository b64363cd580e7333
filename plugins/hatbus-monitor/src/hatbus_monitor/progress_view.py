"""What a progress display shows, and how it looks as a line, in a terminal, in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hatbus_monitor.durations import clock_time, of_total, rate
from hatbus_monitor.metric_values import shown

_MOST_EPOCHS: Final = 50
"""Rows of the table in a notebook."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a run at one moment, in numbers on the host.

    Attributes:
        epoch, step, done: 1-based epoch, steps of it and steps of the run that are over.
        num_epochs, epoch_steps, total: their ends; None where nobody knows.
        samples_per_second: over all ranks.
        elapsed, remaining: seconds; NaN where nobody knows.
        values: what is shown by name: losses, lr, metrics.
        nested: title, number and total of what runs inside the step (a validation).
        ending: why the run ends early; empty while it does not.
        epochs: those that are over: 1-based number, what was shown at its end, and its seconds.
    """

    epoch: int = 1
    num_epochs: int | None = None
    step: int = 0
    epoch_steps: int | None = None
    done: int = 0
    total: int | None = None
    samples_per_second: float = 0.0
    elapsed: float = 0.0
    remaining: float = float("nan")
    values: Mapping[str, object] = field(default_factory=dict)
    nested: tuple[str, int, int | None] | None = None
    ending: str = ""
    epochs: Sequence[tuple[int, Mapping[str, object], float]] = ()


def facts(snapshot: Snapshot) -> Iterator[str]:
    """Speed and time."""
    if snapshot.samples_per_second > 0:
        yield f"{rate(snapshot.samples_per_second)} samples/s"
    if snapshot.ending:
        yield f"{snapshot.ending} after {clock_time(snapshot.elapsed)}"
    elif snapshot.total is not None and snapshot.done >= snapshot.total:
        yield f"took {clock_time(snapshot.elapsed)}"
    else:
        yield f"{clock_time(snapshot.remaining)} left"


def values_text(snapshot: Snapshot) -> str:
    """``loss 0.1234, lr 0.01``."""
    return ", ".join(f"{name} {shown(value)}" for name, value in snapshot.values.items())


def line(snapshot: Snapshot) -> str:
    """One plain line, for a pipe or a log file."""
    where = (
        f"epoch {of_total(snapshot.epoch, snapshot.num_epochs)}, "
        f"step {of_total(snapshot.step, snapshot.epoch_steps)}"
    )
    if snapshot.nested is not None:
        title, number, total = snapshot.nested
        where = f"{where}, {title} {of_total(number, total)}"
    parts = [values_text(snapshot), *facts(snapshot)]
    return f"{where}: {', '.join(part for part in parts if part)}"


def bars(snapshot: Snapshot) -> RenderableType:
    """Bars and values, for a terminal."""
    grid = Table.grid(padding=(0, 1))
    grid.expand = True
    for ratio in (None, 1, None, None):
        grid.add_column(ratio=ratio, no_wrap=True)
    grid.add_row(
        Text(f"epoch {of_total(snapshot.epoch, snapshot.num_epochs)}", style="bold"),
        _bar(snapshot.step, snapshot.epoch_steps),
        Text(of_total(snapshot.step, snapshot.epoch_steps), style="cyan"),
        Text(", ".join(facts(snapshot))),
    )
    if snapshot.nested is not None:
        title, number, total = snapshot.nested
        row = [Text(f"  {title}"), _bar(number, total), Text(of_total(number, total), style="cyan")]
        grid.add_row(*row, Text(""))
    if not snapshot.values:
        return grid
    return Group(grid, Text(values_text(snapshot), style="dim"))


def html(snapshot: Snapshot) -> str:
    """A bar, the line, and a table of the epochs that are over, for a notebook."""
    top = f' value="{snapshot.step}" max="{snapshot.epoch_steps}"' if snapshot.epoch_steps else ""
    bar = f"<progress{top}></progress> <code>{escape(line(snapshot))}</code>"
    return f"<div>{bar}{_table(snapshot)}</div>"


def _table(snapshot: Snapshot) -> str:
    """A row for each of the last epochs."""
    shown_epochs = snapshot.epochs[-_MOST_EPOCHS:]
    if not shown_epochs:
        return ""
    names = [*dict.fromkeys(name for _, values, _ in shown_epochs for name in values)]
    rows = [_row("th", ["epoch", *names, "time"])]
    for number, values, seconds in shown_epochs:
        cells = (shown(values[name]) if name in values else "" for name in names)
        rows.append(_row("td", [str(number), *cells, clock_time(seconds)]))
    left = len(snapshot.epochs) - len(shown_epochs)
    note = f"<caption>the last {_MOST_EPOCHS} of {left + _MOST_EPOCHS} epochs</caption>"
    return f"<table>{note if left else ''}{''.join(rows)}</table>"


def _row(kind: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"


def _bar(number: int, total: int | None) -> RenderableType:
    if not total:
        return Text("")
    return ProgressBar(total=total, completed=min(number, total))
