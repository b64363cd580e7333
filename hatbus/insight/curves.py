"""Curves in the terminal, as braille dots, or as a picture by matplotlib (the extra ``plot``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import SaveError

if TYPE_CHECKING:
    from rich.console import Console

_HEIGHT: Final = 12
Curves = Mapping[str, Sequence[tuple[float, float]]]


def show_curves(
    curves: Curves,
    metric: str,
    console: Console | None = None,
    *,
    x: str = "step",
    logarithmic: bool = False,
) -> None:
    """Prints curves, a legend above and the ends of the x axis below.

    Args:
        curves: label to its points ``(x, y)``, ascending in x; those that are not finite are left
            out.
        metric: what y is.
        console: where; stdout when None.
        x: what x is.
        logarithmic: of x.
    """
    from rich.text import Text

    from hatbus.insight.preview_chart import COLOURS, Canvas
    from hatbus.insight.terminal import terminal

    console = console or terminal()
    drawn = {name: _finite(points, logarithmic=logarithmic) for name, points in curves.items()}
    ends = _ends([p for points in drawn.values() for p in points])
    low, high = ends[1]
    plain = "utf" not in (console.encoding or "").lower()
    labels = {0: f"{high:.5g}", _HEIGHT - 1: f"{low:.5g}"}
    left = max(len(metric), *map(len, labels.values()))
    canvas = Canvas(max(20, console.width - left - 3), _HEIGHT)
    for number, (name, points) in enumerate(drawn.items()):
        style = COLOURS[number % len(COLOURS)]
        most = (canvas.width * 2 - 1, _HEIGHT * 4 - 1)
        dots = [(_place(a, ends[0], most[0]), _place(b, ends[1], most[1])) for a, b in points]
        for column, row in _joined(dots):
            canvas.dot(column, row, style)
        mark = Text("-- " if plain else "━━ ", style)
        console.print(mark.append(f"{name}{_last(curves[name], x)}", "default"))
    console.print(Text(metric, "bold"))
    for row in range(_HEIGHT):
        start = Text(f"{labels.get(row, ''):>{left}} {'|' if plain else '│'} ")
        console.print(start.append_text(canvas.row(row, ascii_only=plain)), no_wrap=True, crop=True)
    first, last = (f"{x} {10**end if logarithmic else end:g}" for end in ends[0])
    line = f"{'':{left}}   {first:<{canvas.width - len(last)}}{last}"
    console.print(line, no_wrap=True, highlight=False)


def draw_curves(
    curves: Curves, path: Path, metric: str, *, x: str = "step", logarithmic: bool = False
) -> None:
    """Writes curves as a picture; the arguments are those of ``show_curves``.

    Args:
        curves: label to points.
        path: of the picture, ``.png``, ``.svg`` or ``.pdf``.
        metric: what y is.
        x: what x is.
        logarithmic: of x.

    Raises:
        JobError: matplotlib is missing, or writes no such file.
        SaveError: it cannot be written.
    """
    from hatbus.insight.preview_picture import check_target

    check_target(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes: Any = figure.subplots()
    for name, points in curves.items():
        at, values = zip(*points, strict=True)
        axes.plot(at, values, label=name, marker="." if len(points) < 50 else None)
    axes.set_xlabel(x)
    axes.set_ylabel(metric)
    if logarithmic:
        axes.set_xscale("log")
    axes.legend(fontsize="small")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise SaveError(f"cannot write {str(path)!r}: {error.strerror}") from error


def _finite(
    points: Sequence[tuple[float, float]], *, logarithmic: bool
) -> list[tuple[float, float]]:
    """The points that can be drawn, where they are drawn."""
    found = [(at, value) for at, value in points if math.isfinite(value)]
    return [(math.log10(at), value) for at, value in found] if logarithmic else found


def _ends(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Least and greatest x, and y."""
    return [(min(axis), max(axis)) for axis in zip(*points, strict=True)] or [(0.0, 0.0)] * 2


def _last(points: Sequence[tuple[float, float]], x: str) -> str:
    at, value = points[-1]
    return "" if at == points[0][0] and len(points) > 1 else f"  last {value:.5g} at {x} {at:g}"


def _place(value: float, ends: tuple[float, float], most: int) -> int:
    low, high = ends
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
