"""``hatbus runs``: lists the runs of a place, compares, draws and removes them. Without torch."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError
from hatbus.runs.listing import as_json, chosen, metric_named, run_named, runs_below
from hatbus.runs.summary import STATES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from hatbus.runs.listing import Run

PLACE: Final = "runs"
VERBS: Final = {"compare": "RUN RUN", "plot": "METRIC RUN", "clean": "RUN"}
_MOST_COLUMNS: Final = 2


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.usage = (
        "hatbus runs [PLACE] [options]\n"
        "       hatbus runs compare RUN RUN ... [options]\n"
        "       hatbus runs plot METRIC RUN ... [--out FILE]\n"
        "       hatbus runs clean [RUN ...] [options]"
    )
    parser.epilog = (
        "example: hatbus runs runs/digits --sort val/accuracy --where 'val/accuracy>0.9'"
    )
    parser.add_argument(
        "words",
        metavar="WORD",
        nargs="*",
        help="a folder with runs (default: runs), or compare, plot, clean and their runs: each by "
        "its folder, or by its name or the name's end below the place",
    )
    parser.add_argument(
        "--place", metavar="DIR", default=PLACE, help="where names of runs are looked up"
    )
    parser.add_argument("--sort", metavar="METRIC", help="the best of this metric first")
    parser.add_argument(
        "--where", metavar="METRIC>NUMBER", action="append", default=[], help="only such runs"
    )
    parser.add_argument("--state", choices=STATES, help="only runs in this state")
    parser.add_argument(
        "--metric", metavar="METRIC", action="append", default=[], help="show this metric"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", metavar="FILE", help="plot: write a picture: .png, .svg or .pdf")
    parser.add_argument("--yes", action="store_true", help="clean: do not ask")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")


def run(args: argparse.Namespace) -> int:
    """Does what the first word says.

    Raises:
        HatbusError: there is no such run or metric, or something cannot be written.
    """
    verb, *words = args.words or [args.place]
    if verb == "compare":
        return compare(args, words)
    if verb == "plot":
        from hatbus.cli.runs.plot import plot

        return plot(args, words)
    if verb == "clean":
        from hatbus.cli.runs.clean import clean

        return clean(args, words)
    if words:
        others = [word for word in words if word not in VERBS]
        meant = " ".join([words[0], *(others or [VERBS.get(words[0], "")])])
        if words[0] in VERBS:
            raise JobError(
                f"{' '.join(args.words)!r}: {words[0]} comes before its runs: hatbus runs {meant} "
                f"--place {verb}"
            )
        raise JobError(
            f"{' '.join(args.words)!r}: accepted: one folder with runs, or compare, plot or clean "
            "and their runs"
        )
    runs = chosen(runs_below(Path(verb)), args.where, args.state, args.sort)
    return show_list(args, runs)


def show_list(args: argparse.Namespace, runs: list[Run]) -> int:
    """Prints a row per run."""
    if args.json:
        print(json.dumps([as_json(run) for run in runs], indent=2))
        return 0
    if not runs:
        print("no such run")
        return 0
    from hatbus.cli.display import show_rows

    asked = [metric_named(word, runs) for word in args.metric]
    if args.sort and not asked:
        asked = [metric_named(args.sort, runs)]
    metrics = asked or usual_metrics(runs)
    heads = [f"{part} {name}" for name in metrics for part in ("best", "last")]
    rows = [("run", "when", "state", "steps", *heads, "job", "changes")]
    rows += [_row(run, metrics) for run in runs]
    rows, left_out = fitting(rows) if sys.stdout.isatty() else (rows, [])
    show_rows(rows)
    if left_out:
        import shutil
        import textwrap

        note = f"no room here for {', '.join(left_out)}; --json has all"
        print(textwrap.fill(note, shutil.get_terminal_size().columns))
    return 0


def fitting(rows: list[tuple[str, ...]]) -> tuple[list[tuple[str, ...]], list[str]]:
    """The rows with the columns that the terminal has room for, and the names of the others."""
    import shutil

    room, heads = shutil.get_terminal_size().columns, rows[0]
    widths = {head: max(len(row[i]) for row in rows) + 2 for i, head in enumerate(heads[:-1])}
    left_out: list[str] = []
    for head in ("when", "job", *reversed(heads[4:-2])):
        if sum(widths.values()) > room:
            left_out.append(head)
            del widths[head]
    kept = [i for i, head in enumerate(heads) if head not in left_out]
    return [tuple(row[i] for i in kept) for row in rows], left_out


def usual_metrics(runs: Sequence[Run]) -> list[str]:
    """What runs judge by; else what their validations published; else what else they did."""
    names = list(dict.fromkeys(name for run in runs for name in run.summary.metrics))
    judged = [n for n in names if any(_is_judged(n, run) for run in runs)]
    validated = [n for n in names if n.startswith("val/")]
    others = [n for n in names if not n.startswith(("lr/", "time/"))]
    return (judged or validated or others)[:_MOST_COLUMNS]


def _is_judged(metric: str, run: Run) -> bool:
    return any(metric == n or metric.endswith(f"/{n}") for n in run.summary.judged)


def _row(run: Run, metrics: Sequence[str]) -> tuple[str, ...]:
    summary = run.summary
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(summary.started))
    values = [shown(run.value(name, kind)) for name in metrics for kind in ("best", "last")]
    said = " ".join(summary.changes)
    reason = f"({summary.state}: {summary.reason})" if summary.reason else ""
    return (
        run.name,
        when,
        summary.state,
        str(summary.steps),
        *values,
        "/".join(summary.job.split(os.sep)[-2:]),  # noqa: PTH206 - pathlib takes 3 ms to load
        " ".join(filter(None, (said, reason))),
    )


def shown(value: float | None) -> str:
    """A metric as a cell."""
    return "" if value is None else f"{value:.5g}"


def compare(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Prints what differs between runs, in settings and in metrics."""
    from hatbus.cli.display import show_rows
    from hatbus.runs.differences import differences

    if len(words) < 2:
        raise JobError("compare needs two runs or more: hatbus runs compare RUN RUN")
    runs = [run_named(word, Path(args.place)) for word in words]
    settings, metrics = differences(runs)
    if args.json:
        names = [run.name for run in runs]
        found: dict[str, Any] = {"runs": names, "settings": settings, "metrics": metrics}
        print(json.dumps(found, indent=2, default=str))
        return 0
    rows = [("", *(run.name for run in runs))]
    rows += [
        (name, *("-" if v is None else _text(v) for v in row)) for name, row in settings.items()
    ]
    rows += [
        (f"{kind} {name}", *(shown(value) or "-" for value in row))
        for name, kinds in metrics.items()
        for kind, row in kinds.items()
    ]
    show_rows(rows)
    return 0


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
