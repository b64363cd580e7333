"""``hatbus runs plot``: one metric of several runs, in the terminal or as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hatbus.errors import JobError
from hatbus.insight.curves import draw_curves, show_curves
from hatbus.runs.curves import curve
from hatbus.runs.listing import metric_named, run_named, runs_below

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


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
        draw_curves(curves, target, metric)
        print(target)
    else:
        show_curves(curves, metric)
    return 0
