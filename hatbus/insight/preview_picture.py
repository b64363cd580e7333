"""A preview as a PNG, SVG or PDF, by matplotlib (the extra ``plot``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError, SaveError

if TYPE_CHECKING:
    from hatbus.insight.preview_run import Preview

SUFFIXES: Final = (".png", ".svg", ".pdf")
MOST_COLOURS: Final = 10
"""Of matplotlib's palette ``tab10``; more curves are shaded by ``viridis``."""
MOST_IN_LEGEND: Final = 8
MOST_CROSSING: Final = 4
"""A label with so few marks also gets lines across the curves."""


def check_target(path: Path) -> None:
    """Refuses a file that could not be written, before anything is built.

    Raises:
        JobError: matplotlib is missing, or writes no such file.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise JobError(f"--out is {str(path)!r}; accepted: a file in {', '.join(SUFFIXES)}")
    try:
        import matplotlib as _  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise JobError(
            "--out needs matplotlib, which is not installed; python -m pip install 'hatbus[plot]'"
        ) from error


def draw(found: Preview, path: Path, title: str = "") -> None:
    """Writes the picture.

    Raises:
        SaveError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    fields = list(found.values)
    rows = len(found.marks)
    heights = [3.0] * len(fields) + ([0.3 + 0.26 * rows] if rows else [])
    figure = Figure(figsize=(9, sum(heights) + 1.1), layout="constrained")
    axes = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for name, plot in zip(fields, axes, strict=False):
        _curves(plot, found, name)
    if rows:
        _marks(axes[-1], axes[: len(fields)], found)
    axes[-1].set_xlabel("step")
    axes[-1].set_xlim(0, found.total)
    _epochs(axes[0], found)
    if title:
        figure.suptitle(title, fontsize="medium")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise SaveError(f"cannot write {str(path)!r}: {error.strerror}") from error


def _curves(plot: Any, found: Preview, name: str) -> None:
    """One field: a line per curve, its label in a legend where there is more than one."""
    from matplotlib import colormaps

    curves = found.curves(name)
    few = len(curves) <= MOST_COLOURS
    for number, (label, values) in enumerate(curves):
        shade = number if few else number / (len(curves) - 1)
        colour = colormaps["tab10" if few else "viridis"](shade)
        named = few or number < MOST_IN_LEGEND - 1 or number == len(curves) - 1
        ends = [*found.steps, found.total], [*values, values[-1]]  # the last step has a length too
        plot.step(*ends, where="post", color=colour, label=label if named else None)
    if len(curves) > 1:
        plot.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False)
    plot.set_ylabel(name)
    plot.grid(alpha=0.25)
    plot.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    low = min(value for _, values in curves for value in values)
    high = max(value for _, values in curves for value in values)
    if 0 <= low < high / 2 or 0 < low == high:
        plot.set_ylim(0, high * 1.05)


def _marks(plot: Any, above: Any, found: Preview) -> None:
    """A row per label; what happens only a few times also crosses the curves."""
    labels = list(found.marks)
    for row, steps in enumerate(found.marks.values()):
        colour = f"C{9 - row % 9}"
        plot.plot(steps, [row] * len(steps), "|", color=colour, markersize=9, clip_on=False)
        if len(steps) <= MOST_CROSSING and not _is_only_end(steps, found):
            for other in above:
                for step in steps:
                    other.axvline(step, color=colour, linestyle=":", linewidth=1)
    plot.set_yticks(range(len(labels)), labels)
    plot.set_ylim(len(labels) - 0.5, -0.5)
    plot.tick_params(axis="y", length=0)
    plot.grid(axis="x", alpha=0.25)
    for side in ("top", "right", "left"):
        plot.spines[side].set_visible(False)


def _is_only_end(steps: list[int], found: Preview) -> bool:
    return steps == [found.total - 1]


def _epochs(plot: Any, found: Preview) -> None:
    """A second axis on top that counts epochs."""
    length = found.steps_per_epoch
    if not length or found.total <= length:
        return
    top = plot.secondary_xaxis(
        "top", functions=(lambda step: step / length, lambda epoch: epoch * length)
    )
    top.set_xlabel("epoch")
    top.xaxis.get_major_locator().set_params(integer=True)
