"""A preview as a chart in the terminal: curves of braille dots, a row of marks per label."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from hatbus.insight.preview_run import Preview

COLOURS: Final = ("cyan", "yellow", "magenta", "green", "red", "blue")
HEIGHT: Final = 12
MOST_CURVES: Final = 8
_DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of a braille character by column (2) and row (4)."""
_BLANK: Final = 0x2800


class Canvas:
    """A grid of characters with 2 x 4 dots each; a cell has the colour drawn last."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._cells = [[0] * width for _ in range(height)]
        self._styles = [[""] * width for _ in range(height)]

    def dot(self, x: int, y: int, style: str) -> None:
        """Sets the dot at column x from the left and row y from the bottom."""
        row = self.height - 1 - y // 4
        self._cells[row][x // 2] |= _DOTS[x % 2][3 - y % 4]
        self._styles[row][x // 2] = style

    def row(self, number: int, *, ascii_only: bool) -> Text:
        """One line of the picture."""
        text = Text()
        for cell, style in zip(self._cells[number], self._styles[number], strict=True):
            full = "*" if ascii_only else chr(_BLANK + cell)
            text.append(full if cell else " ", style)
        return text


def show(found: Preview, console: Console) -> None:
    """Prints a chart per field, then the marks, under one axis of steps."""
    plain = "utf" not in (console.encoding or "").lower()
    edges = [_number(v) for name in found.values for v in _range(found, name)]
    left = max([*map(len, edges), *(len(label) for label in found.marks), 8])
    width = max(20, console.width - left - 3)
    for name in found.values:
        for line in _chart(found, name, left, width, plain=plain):
            console.print(line, no_wrap=True, crop=True)
    console.print(axis(found, left, width, plain=plain), no_wrap=True)
    for number, (label, steps) in enumerate(found.marks.items()):
        row = mark_row(steps, found.total, width, "+" if plain else "▲")
        line = Text(f"{label:>{left}}   ").append(row, COLOURS[-1 - number % len(COLOURS)])
        console.print(line.append(""), no_wrap=True, crop=True)


def _chart(found: Preview, name: str, left: int, width: int, *, plain: bool) -> list[Text]:
    """The lines of one field: a legend, then the picture with its range at the left."""
    curves, (low, high) = found.curves(name), _range(found, name)
    canvas = Canvas(width, HEIGHT)
    legend = Text(f"{name:>{left}}   ", "bold")
    for number, (label, values) in enumerate(curves):
        style = COLOURS[number % len(COLOURS)]
        draw(canvas, found, values, (low, high), style)
        if len(curves) > 1 and number < MOST_CURVES:
            legend.append("-- " if plain else "━━ ", style).append(f"{label}   ", "default")
    if len(curves) > MOST_CURVES:
        legend.append(f"and {len(curves) - MOST_CURVES} more", "dim")
    labels = {0: _number(high), HEIGHT // 2: _number((low + high) / 2), HEIGHT - 1: _number(low)}
    bars = "|" if plain else "│"
    ticks = "+" if plain else "┤"
    rows = [
        Text(f"{labels.get(row, ''):>{left}} {ticks if row in labels else bars} ").append_text(
            canvas.row(row, ascii_only=plain)
        )
        for row in range(HEIGHT)
    ]
    return [legend, *rows]


def draw(
    canvas: Canvas,
    found: Preview,
    values: Sequence[float],
    ends: tuple[float, float],
    style: str,
) -> None:
    """Draws a curve; a jump becomes a vertical line."""
    low, high = ends
    wide, tall = canvas.width * 2 - 1, canvas.height * 4 - 1
    before: int | None = None
    for x in range(wide + 1):
        step = round(x / wide * max(found.total - 1, 0))
        value = values[max(bisect_right(found.steps, step) - 1, 0)]
        y = round((value - low) / (high - low) * tall) if high > low else tall // 2
        start = y if before is None else before + (1 if y > before else -1 if y < before else 0)
        for dot in range(min(start, y), max(start, y) + 1):
            canvas.dot(x, dot, style)
        before = y


def axis(found: Preview, left: int, width: int, *, plain: bool) -> Text:
    """The axis with steps, and epochs where they are known."""
    line, corner = ("-", "+") if plain else ("─", "└")
    epochs = f", {found.total / found.steps_per_epoch:g} epochs" if found.steps_per_epoch else ""
    end = f"{found.total - 1}"
    room = width - len(end) - 1
    full = f"step ({found.total} steps{epochs})"
    short = next((w for w in (full, f"{found.total} steps") if len(w) <= room - 2), "")
    words = f"0{short:^{room}}{end}"
    return Text(f"{'':>{left}} {corner}{line * (width + 1)}\n{'':>{left}}   {words}")


def mark_row(steps: Sequence[int], total: int, width: int, sign: str) -> str:
    """A sign in every column that a step falls in."""
    row = [" "] * width
    for step in steps:
        row[round(step / max(total - 1, 1) * (width - 1))] = sign
    return "".join(row).rstrip()


def _range(found: Preview, name: str) -> tuple[float, float]:
    """From 0 to the greatest value; from the least one where the field changes a little."""
    values = [value for _, curve in found.curves(name) for value in curve]
    low, high = min(values), max(values)
    return (min(low, 0.0) if low < high / 2 or low == high else low), max(high, 0.0)


def _number(value: float) -> str:
    return f"{value:.3g}"
