"""The picture of the comparison, from what ``tox -e peers`` recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comparison_page import ALL, BARE, NAMES, PLAIN  # type: ignore[import-not-found]  # beside this

OURS, THEIRS, HAND = "#1b6ca8", "#b9bec4", "#6b7178"


def draw(record: Mapping[str, Any], path: Path, digest: str) -> None:
    """Four figures as bars.

    Args:
        record: what ``docs/comparison.json`` holds.
        path: of the picture.
        digest: of the record, which the picture holds as its title.
    """
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "hatbus", "font.size": 9}
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.6), layout="constrained")
    figures = {name: measure["figures"] for name, measure in record["measures"].items()}
    bare = figures[BARE]["hand"]
    called = figures[BARE.replace("0 callbacks", "20 callbacks")]
    plain = figures[PLAIN]["hand"]
    bars(
        axes[0, 0],
        "20 callbacks: microseconds added to a step",
        {p: v - bare for p, v in called.items()},
    )
    bars(
        axes[0, 1],
        "everything on: a step, of a bare one",
        {p: v / plain for p, v in figures[ALL].items()},
        "x",
    )
    bars(axes[1, 0], "validation: microseconds a batch", figures["validation"])
    bars(
        axes[1, 1],
        "start to end of ten steps: processor seconds",
        {p: r["processor seconds"] for p, r in record["start"].items()},
    )
    figure.savefig(path, metadata={"Date": None, "Title": f"record {digest}"})
    plt.close(figure)


def bars(axis: Any, title: str, figures: Mapping[str, float], unit: str = "") -> None:
    """One figure: a bar for each, hatbus's in colour, the shortest on top."""
    order = sorted(figures, key=figures.__getitem__, reverse=True)
    colours = [{"hatbus": OURS, "hand": HAND}.get(name, THEIRS) for name in order]
    drawn = axis.barh([NAMES[name] for name in order], [figures[n] for n in order], color=colours)
    labels = [f"{figures[n]:,.0f}" if abs(figures[n]) >= 20 else f"{figures[n]:.2f}" for n in order]
    axis.bar_label(drawn, [f" {label}{unit}" for label in labels], fontsize=8)
    axis.set_title(title, fontsize=9.5, loc="left")
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.set_xticks([])
    axis.margins(x=0.14)
