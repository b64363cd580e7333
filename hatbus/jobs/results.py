"""What a run shows when it is over: the last metrics, and where its files are."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hatbus.evaluation.numbers import scalars_of
from hatbus.evaluation.train_loss import STEP
from hatbus.insight.terminal import terminal
from hatbus.option_values import short

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console

    from hatbus.insight.profile import Profile
    from hatbus.jobs.job import Job
    from hatbus.jobs.run_log import RunLog
    from hatbus.loop.context import Context


def show(book: RunLog, print_on: Callable[[Console], None], *, quiet: bool = False) -> None:
    """Shows something on the terminal, unless it is to be quiet, and in the run's log."""
    from rich.text import Text

    console = terminal()
    with console.capture() as captured:
        print_on(console)
    text = captured.get()
    book.say(logging.INFO, Text.from_ansi(text).plain.strip("\n"))
    if not quiet:
        sys.stdout.write(text)


def show_results(console: Console, ctx: Context, places: list[Path]) -> None:
    """Prints the last published metrics and where the run's files are."""
    metrics, steps = without_twins(dict(scalars_of(ctx))), ctx.position.global_step
    if metrics:
        is_old = 0 < steps == ctx.began_at
        show_metrics(
            metrics, f"after {steps} steps" + (", as it was saved" if is_old else ""), console
        )
    else:
        console.print(f"done after {steps} steps; no plugin published a metric")
    for place in places:
        console.print(f"files: {short(place)}", soft_wrap=True, highlight=False)
        console.print(f"       {contents(place)}", soft_wrap=True, highlight=False)


def without_twins(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics without the losses of the last steps, where those of the epoch are there."""
    twins = {f"{name}{STEP}" for name in metrics}
    return {name: value for name, value in metrics.items() if name not in twins}


def show_metrics(
    metrics: Mapping[str, float], title: str | None = None, console: Console | None = None
) -> None:
    """Prints metrics as a table, by name.

    Args:
        metrics: name to value.
        title: what they are of; a short one.
        console: where; stdout when None.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table("metric", title=title)
    table.add_column("value", justify="right")
    for name, value in sorted(metrics.items()):
        table.add_row(Text(name), f"{value:.6g}")
    (console or terminal()).print(table)


def contents(folder: Path) -> str:
    """What lies in a folder, folders with a slash, hidden files left out."""
    seen = [p for p in folder.iterdir() if not p.name.startswith(".")]
    return "  ".join(sorted(f"{p.name}/" if p.is_dir() else p.name for p in seen))


def show_profile(console: Console, profile: Profile, folder: Path) -> None:
    """Prints what the plugins cost, and writes the trace into the run's folder."""
    console.print(profile.table())
    if hint := profile.hint():
        console.print(hint)
    path = folder / "profile.json"
    profile.write_trace(path)
    left_out = f" ({profile.untraced} later calls not drawn)" if profile.untraced else ""
    console.print(f"trace: {short(path)}{left_out}; open it in Perfetto or chrome://tracing")


def places_of(job: Job, start: Path) -> list[Path]:
    """The run's folder, and the folders outside it that plugins were told to write to.

    Args:
        job: that was run.
        start: the folder that it was started in.
    """
    told = [p.options.get("save_dir") for p in job.enabled.values()]
    there = (start / Path(str(folder)).expanduser() for folder in told if folder)
    places = [job.run_dir, *there]
    outside = [p for p in dict.fromkeys(places[1:]) if not p.is_relative_to(job.run_dir)]
    return [place for place in (job.run_dir, *outside) if place.is_dir()]
