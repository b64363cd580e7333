"""The page that compares hatbus with other trainers, from what ``tox -e peers`` recorded."""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
RECORD, PAGE, PICTURE = (DOCS / f"comparison.{kind}" for kind in ("json", "md", "svg"))
COMMAND = "tox -e peers -- --record"
NAMES = {
    "hand": "by hand",
    "hatbus": "hatbus",
    "ignite": "Ignite",
    "lightning": "Lightning",
    "accelerate": "Accelerate",
    "transformers": "Transformers",
    "mmengine": "MMEngine",
}
LOOP, ALL, PLAIN = "loop, ", "everything on", "nothing on, the same net"
BARE = "loop, 1 task, 0 callbacks"
STARTS = {"processor seconds": "processor seconds", "MiB": "most memory, MiB"}
SIGNS = {"kept": "**kept**", "partly": "partly", "broken": "broken", "none": "-"}
LINES = re.compile(r"(<!-- a whole step -->\n).*?(<!-- end of it -->)", re.DOTALL)
HEAD = """# Beside other trainers

Written by `{command}` on {date} ({minutes} minutes), on {machine}; torch {torch}, one thread.
Every trainer does the same tasks, each as its own documentation recommends; how is said
[below](#how-each-is-set-up). Compare columns, not machines: a figure is the median of rounds in
which all take turns. Microseconds are of the processor, which other programs on the machine change
little; saves and loads are by the clock.{note}

![Overheads of the trainers, smaller is better](comparison.svg)
"""
SETUPS = {
    "by hand": "the loop that everybody writes; its duties by the quickest known means: `foreach` "
    "calls, sums kept on the device, torch's `SummaryWriter`, a file written beside, synced and "
    "renamed. Callbacks are ten plain calls a step each.",
    "hatbus": "`Trainer` with its own plugins at their default options; nothing is switched off, "
    "so losses are looked at for NaN, and every checkpoint is hashed and synced to the disk.",
    "Ignite": "an `Engine` with handlers: `EMAHandler`, `LRScheduler`, `TensorboardLogger`, "
    "metrics, `Checkpoint` over `DiskSaver`; no progress bar. For exact resume "
    "`DeterministicEngine`.",
    "Lightning": "`barebones=True` where only steps are measured, else no progress bar, no "
    "summary, no sanity check; `EMAWeightAveraging`, `gradient_clip_val`, torchmetrics objects in "
    "`self.log`, `TensorBoardLogger` with `log_every_n_steps=1`, "
    "`ModelCheckpoint(save_last='link')`, in the background `AsyncCheckpointIO`.",
    "Accelerate": "a loop of one's own over what `prepare` returned, for it has no callbacks; "
    "`clip_grad_norm_`, torch's `AveragedModel`, torchmetrics, its TensorBoard tracker, "
    "`save_state` with automatic names.",
    "Transformers": "`Trainer` with `disable_tqdm`, `report_to='none'` and `logging_strategy='no'` "
    "where nothing is logged; torch's `AveragedModel` in a callback, `max_grad_norm`, "
    "`compute_metrics` over class numbers. Its log writes the norm of the gradients and the epoch "
    "besides.",
    "MMEngine": "a `Runner` that trains by iteration; its default hooks off where only steps are "
    "measured; `EMAHook`, `OptimWrapper(clip_grad=...)`, `LoggerHook(interval=1)` with "
    "`TensorboardVisBackend`, `CheckpointHook`. With this torch it reads its own checkpoints only "
    "if `TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`, which is set.",
}
TRIED = {
    "killed while saving": "SIGKILL at moments spread over a save; a new process goes on from the "
    "newest checkpoint, as its trainer finds it, and should end with the weights of a run that "
    "nobody killed.",
    "disk full": "a save finds no room. Is the cause said, and does a new process go on when there "
    "is room?",
    "exact in mid-epoch": "shuffled data and dropout; killed 11 steps into the second epoch of 20, "
    "3 after a checkpoint. Are the last weights, bit for bit, those of a run that nobody killed?",
    "error in a callback": "one of two callbacks raises. Does the run end with that error, is the "
    "callback named, and is the other told?",
    "two of one class": "two instances keep a count each, and are listed the other way round when "
    "the run is resumed.",
    "order": "a callback that needs another one first is listed before it.",
}


def recorded() -> dict[str, Any]:
    """What the last recorded run found."""
    found: dict[str, Any] = json.loads(RECORD.read_text("utf-8"))
    return found


def write_page(record: Mapping[str, Any]) -> None:
    """Writes the page, the picture, and the lines in the README."""
    from comparison_picture import draw  # type: ignore[import-not-found]  # beside this script

    PAGE.write_text(comparison_page(record), "utf-8")
    readme = DOCS.parent / "README.md"
    readme.write_text(with_comparison(readme.read_text("utf-8"), record), "utf-8")
    draw(record, PICTURE, digest(record))


def digest(record: Mapping[str, Any]) -> str:
    """What tells the records of two runs apart; the picture holds it."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def comparison_page(record: Mapping[str, Any]) -> str:
    """The page.

    Args:
        record: what ``docs/comparison.json`` holds.
    """
    peers = list(record["same work"])
    parts = [
        HEAD.format(
            note=f" {record['note']}" if "note" in record else "",
            command=COMMAND,
            torch=record["versions"]["torch"],
            **{k: record[k] for k in ("date", "minutes", "machine")},
        ),
        "## Where others are quicker\n\n" + better(record["measures"], record["start"]),
        "## The loop\n\n" + loop(record["measures"], peers),
        "## Duties\n\n" + duties(record["measures"], peers),
        "## A whole step\n\n" + everything(record["measures"], peers),
        "## Starting\n\n" + starting(record["start"], peers),
        "## Promises\n\n" + promises(record["promises"]),
        "## How each is set up\n\n" + setups(record, peers),
    ]
    return "\n".join(parts)


def with_comparison(page: str, record: Mapping[str, Any]) -> str:
    """A page with the lines of the comparison that it shows, if it does."""
    peers = list(record["same work"])
    lines = everything(record["measures"], peers).split("\n\n", 1)[1]
    return LINES.sub(lambda found: f"{found[1]}\n{lines}\n{found[2]}", page)


def wrapped(text: str, first: str = "") -> str:
    later = " " * len(first)
    return textwrap.fill(
        text, 110, initial_indent=first, subsequent_indent=later, break_on_hyphens=False
    )


def table(first: str, heads: list[str], rows: Mapping[str, list[str]]) -> str:
    lines = [f"| {first} | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines) + "\n"


def titles(peers: list[str]) -> list[str]:
    return [NAMES[peer] for peer in peers]


def number(value: float | None) -> str:
    """Three digits that count, and no more."""
    if value is None:
        return ""
    if abs(value) >= 99.5:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.95 else f"{value:.2f}"


def loop(measures: Mapping[str, Any], peers: list[str]) -> str:
    """What a step takes beyond the bare loop."""
    rows = {}
    for name, measure in measures.items():
        if name.startswith(LOOP):
            bare = measures[name.replace(name.split(", ")[2], "0 callbacks")]["figures"]["hand"]
            figures = measure["figures"]
            rows[name.removeprefix(LOOP)] = [number(figures[p] - bare) for p in peers]
    step = measures[BARE]["figures"]["hand"]
    text = (
        f"Microseconds that a step takes more than the loop by hand without callbacks, which takes "
        f"{number(step)}: a linear layer of 8 x 8, SGD, batches in a list, so that the trainer "
        f"shows. A "
        "callback does nothing on every event of a step that its trainer has: 10 in hatbus, 6 in "
        "Lightning, 4 in Ignite and Transformers, 2 in MMEngine; Accelerate has none. Of several "
        "tasks each step has one."
    )
    return wrapped(text) + "\n\n" + table("", titles(peers), rows)


def duties(measures: Mapping[str, Any], peers: list[str]) -> str:
    left = [n for n in measures if not n.startswith(LOOP) and n not in (ALL, PLAIN)]
    rows = {
        f"{name}, {measures[name]['what']}": [
            number(measures[name]["figures"].get(p)) for p in peers
        ]
        for name in left
    }
    text = (
        "Average, clipping and scaling with 1.3 million parameters in 14 tensors and batches of "
        "4; the metrics and the validation with a two-layer toy of batches of 64; a scalar of ten "
        "that are written every step, with all that logging brings along; saving and loading "
        "101 MB. Of these, by hand and hatbus alone wait until the disk has a checkpoint, and "
        "hatbus alone hashes and verifies it."
    )
    return wrapped(text) + "\n\n" + table("", titles(peers), rows)


def everything(measures: Mapping[str, Any], peers: list[str]) -> str:
    bare, full = (measures[name]["figures"] for name in (PLAIN, ALL))
    rows = {
        "a bare step, microseconds": [number(bare[p]) for p in peers],
        "with everything on": [number(full[p]) for p in peers],
        "of a bare step by hand": [f"{full[p] / bare['hand']:.2f}x" for p in peers],
    }
    text = (
        "A net of 1.3 million parameters, AdamW (fused), batches of 64; on are the average, "
        "clipping, scaling, the learning rate's schedule, mean loss and accuracy, five scalars to "
        "TensorBoard every step, and a checkpoint every 200 steps."
    )
    return wrapped(text) + "\n\n" + table("", titles(peers), rows)


def starting(start: Mapping[str, Any], peers: list[str]) -> str:
    rows = {title: [number(start[p][kind]) for p in peers] for kind, title in STARTS.items()}
    text = "A script that trains ten steps of the small layer: all of it, with its imports."
    return wrapped(text) + "\n\n" + table("", titles(peers), rows)


def better(measures: Mapping[str, Any], start: Mapping[str, Any]) -> str:
    """Every figure in which a trainer, or the loop by hand, is ahead of hatbus."""
    figures = {name: measure["figures"] for name, measure in measures.items()}
    figures |= {
        f"starting, {STARTS[kind]}": {p: row[kind] for p, row in start.items()} for kind in STARTS
    }
    lines = []
    for name, found in figures.items():
        ahead = {
            p: v
            for p, v in found.items()
            if p not in ("hand", "hatbus") and v < found.get("hatbus", v)
        }
        if ahead:
            said = ", ".join(
                f"{NAMES[p]} {number(v)}" for p, v in sorted(ahead.items(), key=lambda i: i[1])
            )
            lines.append(wrapped(f"{name}: {said}; hatbus {number(found['hatbus'])}", "- "))
    if not lines:
        return "Of what is measured here, in nothing.\n"
    said = f"Of {len(figures)} figures, some trainer is ahead of hatbus in {len(lines)}:"
    return said + "\n\n" + "\n".join(lines) + "\n"


def promises(found: Mapping[str, Any]) -> str:
    """What became of every promise, with each trainer's own checkpoints and callbacks."""
    names = list(next(iter(found.values())))
    rows = {trial: [SIGNS[row[name]["verdict"]] for name in names] for trial, row in found.items()}
    text = (
        "Each was tried with the trainer's own checkpoints and callbacks, in processes that were "
        "really killed, on a disk that was really full."
    )
    parts = [wrapped(text), "", table("", titles(names), rows)]
    for trial, row in found.items():
        parts.append(wrapped(f"*{trial}*: {TRIED[trial]}") + "\n")
        parts += [wrapped(f"{NAMES[name]}: {row[name]['told']}", "- ") for name in names]
        parts.append("")
    return "\n".join(parts)


def setups(record: Mapping[str, Any], peers: list[str]) -> str:
    far = max(record["same work"].values())
    text = (
        f"After the same steps with all duties on, the weights of all are those of the loop by "
        f"hand (at most "
        f"{far:.1g} away). Composer is left out: its last version wants a torch below 2.7.1."
    )
    versions = {NAMES[p]: v for p, v in record["versions"].items() if p in NAMES}
    lines = [wrapped(text), ""]
    for peer in titles(peers):
        version = f" {versions[peer]}" if peer in versions else ""
        lines.append(wrapped(f"{peer}{version}: {SETUPS[peer]}", "- "))
    return "\n".join(lines) + "\n"
