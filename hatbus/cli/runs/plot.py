"""``hatbus runs plot``: one metric of several runs, in the terminal or as a picture."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError, SaveError
from hatbus.runs.curves import curve
from hatbus.runs.listing import metric_named, run_named, runs_below

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.console import Console

    from hatbus.runs.curves import Points

_HEIGHT: Final = 12
Curves = dict[str, "Points"]


def plot(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Draws a metric of the named runs, or of all in the place.

    Raises:
        HatbusError: there is no such run or metric, or the picture cannot be written.
    """
    if not words:
        raise JobError("plot needs a metric and runs: hatbus runs plot METRIC RUN ...")
    place, target = Path(args.place), Path(args.out) if args.out else None
    if target is not None:
        from hatbus.insight.preview_picture import check_target

        check_target(target)
    runs = [run_named(word, place) for word in words[1:]]
    metric = metric_named(words[0], runs or runs_below(place))
    runs = runs or [run for run in runs_below(place) if metric in run.summary.metrics]
    curves = {run.name: curve(run, metric) for run in runs}
    if target is not None:
        draw(curves, metric, target)
        print(target)
    else:
        from hatbus.insight.terminal import terminal

        show(curves, metric, terminal())
    return 0


def finite(points: Points) -> Points:
    """The points that can be drawn."""
    return [(step, value) for step, value in points if math.isfinite(value)]


def show(curves: Curves, metric: str, console: Console) -> None:
    """Prints the curves, a legend above and the steps below."""
    from rich.text import Text

    from hatbus.insight.preview_chart import COLOURS, Canvas

    drawn = {name: finite(points) for name, points in curves.items()}
    values = [value for points in drawn.values() for _, value in points]
    steps = [step for points in drawn.values() for step, _ in points]
    low, high, first, last = *_ends(values), *_ends(steps)
    plain = "utf" not in (console.encoding or "").lower()
    labels = {0: f"{high:.5g}", _HEIGHT - 1: f"{low:.5g}"}
    left = max(len(metric), *map(len, labels.values()))
    canvas = Canvas(max(20, console.width - left - 3), _HEIGHT)
    for number, (name, points) in enumerate(drawn.items()):
        style = COLOURS[number % len(COLOURS)]
        dots = [
            (
                _place(step, first, last, canvas.width * 2 - 1),
                _place(value, low, high, _HEIGHT * 4 - 1),
            )
            for step, value in points
        ]
        for x, y in _joined(dots):
            canvas.dot(x, y, style)
        mark = Text("-- " if plain else "━━ ", style)
        console.print(mark.append(f"{name}  last {_last(curves[name])}", "default"))
    console.print(Text(metric, "bold"))
    for row in range(_HEIGHT):
        start = Text(f"{labels.get(row, ''):>{left}} {'|' if plain else '│'} ")
        console.print(start.append_text(canvas.row(row, ascii_only=plain)), no_wrap=True, crop=True)
    end = f"step {last:g}"
    console.print(
        f"{'':{left}}   {f'step {first:g}':<{canvas.width - len(end)}}{end}", no_wrap=True
    )


def _last(points: Points) -> str:
    return f"{points[-1][1]:.5g} at step {points[-1][0]}"


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else (0.0, 0.0)


def _place(value: float, low: float, high: float, most: int) -> int:
    return round((value - low) / (high - low) * most) if high > low else most // 2


def _joined(dots: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The dots of a line through some."""
    found = list(dots[:1])
    for (x, y), (to_x, to_y) in pairwise(dots):
        many = max(abs(to_x - x), abs(to_y - y), 1)
        found += [
            (round(x + (to_x - x) * n / many), round(y + (to_y - y) * n / many))
            for n in range(1, many + 1)
        ]
    return found


def draw(curves: Curves, metric: str, target: Path) -> None:
    """Writes the picture.

    Raises:
        SaveError: it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes: Any = figure.subplots()
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=name, marker="." if len(points) < 50 else None)
    axes.set_xlabel("step")
    axes.set_ylabel(metric)
    axes.legend(fontsize="small")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=150)
    except OSError as error:
        raise SaveError(f"cannot write {str(target)!r}: {error.strerror}") from error
