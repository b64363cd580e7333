"""``hatbus explain``: the plan of a run, before anything runs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from hatbus import Bus, hookimpl
from hatbus.cli import main
from hatbus.cli.explain import column_widths, plan_of_job, show
from hatbus.discovery import entry_points
from hatbus.insight.explanation import CORE, plan_of

MULTITASK = "docs/examples/multitask/job.toml"
ACCURACIES = ["digit_accuracy", "turn_accuracy"]
ORDER = {
    "run_loop": ["validation", "early_stopping", "checkpoint"],
    "on_loop_begin": [
        "cos_lr",
        *ACCURACIES,
        "validation",
        "checkpoint",
        "stats_monitor",
        "progress",
    ],
    "on_epoch_begin": ["cos_lr", *ACCURACIES, "stats_monitor"],
    "on_step_begin": ["cos_lr"],
    "on_batch_end": ACCURACIES,
    "on_step_end": [*ACCURACIES, "validation", "checkpoint", "stats_monitor", "progress"],
    "on_epoch_end": [
        *ACCURACIES,
        "validation",
        "early_stopping",
        "checkpoint",
        "stats_monitor",
        "progress",
    ],
    "on_loop_end": [*ACCURACIES, "validation", "early_stopping", "checkpoint", "progress"],
    "validate": ["validation"],
    "on_validation_begin": ["stats_monitor", "progress"],
    "on_validation_end": ["early_stopping", "stats_monitor", "progress"],
    "save_checkpoint": ["stats_monitor", "checkpoint"],
    "load_checkpoint": ["checkpoint"],
    "on_log": ["early_stopping", "checkpoint"],
}
"""The multitask example: who takes part in each event that a plugin uses, in order."""


def orders(checkout: Path) -> dict[str, list[str]]:
    plan = plan_of_job(str(checkout / MULTITASK), (), ())
    mine = {e: [p.plugin for p in ps if p.source != CORE] for e, ps in plan.events.items()}
    return {event: names for event, names in mine.items() if names}


def test_the_order_of_every_event_of_the_multitask_example(checkout: Path) -> None:
    assert orders(checkout) == ORDER


def test_the_order_never_depends_on_what_was_installed_first(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = entry_points.installed()
    for seed in range(50):
        shuffled = random.Random(seed).sample(installed, len(installed))
        monkeypatch.setattr(entry_points, "_scan", lambda path, offers=tuple(shuffled): offers)
        assert orders(checkout) == ORDER


def explained(checkout: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["explain", str(checkout / MULTITASK), *words]) == 0
    return capsys.readouterr().out


def test_the_tables_say_why_each_stands_where_it_does_and_what_is_off(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = explained(checkout, capsys, "-o", "turn_accuracy.every='2 epochs'")
    assert "cos_lr          stage schedule; number 1 in the job" in shown
    assert "progress says after stats_monitor" in shown
    assert "tasks turn; every 2 epochs" in shown
    assert "optimizer.lr" in shown
    assert "installed but off: " in shown


@pytest.mark.parametrize("job", ["digits", "multitask"])
def test_nothing_is_cut_off_however_narrow_the_terminal_is(
    job: str, checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["tensorboard", "nan_guard", "freeze_bn_statistics", "jsonl_log", "csv_log", "ema"]
    plan = plan_of_job(str(checkout / f"docs/examples/{job}/job.toml"), more, ("ema.decay=0.9",))
    letters = set()
    for width in (40, 60, 72, 80, 88, 100, 120, 400):
        monkeypatch.setenv("COLUMNS", str(width))
        for event in (None, "on_step_end"):
            show(plan, event, everything=True)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        letters.add("".join(sorted("".join(lines).replace(" ", ""))))
    assert len(letters) == 1


@pytest.mark.parametrize(
    ("room", "widths"),
    [
        (100, [9, 30, 20]),
        (41, [9, 16, 16]),  # the widest first
        (30, [9, 6, 15]),  # no narrower than a word
        (20, [7, 6, 7]),  # but where there is no room, anywhere
        (0, [1, 1, 1]),
    ],
)
def test_columns_are_narrowed_to_the_room_there_is(room: int, widths: list[int]) -> None:
    assert column_widths([9, 30, 20], [9, 6, 15], room) == widths


def test_one_event_can_be_asked_for_with_hatbus_s_own_parts(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(explained(checkout, capsys, "--event", "run_batch", "--json"))
    assert [(e["plugin"], e["does"]) for e in found["events"]["run_batch"]] == [
        ("task_scope", "wraps"),
        ("moments", "wraps"),
        ("batch_processor", "default"),
    ]


def test_the_difference_of_two_jobs_is_shown(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = explained(
        checkout, capsys, "-p", "no:cos_lr", "--diff", str(checkout / MULTITASK)
    ).splitlines()
    assert "+on_step_begin: cos_lr hears" in shown
    assert not [line for line in shown if line.startswith("-") and "cos_lr" in line]


def test_an_unknown_event_is_refused_with_the_closest(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(checkout / MULTITASK), "--event", "on_step_ends"]) == 2
    assert "unknown event 'on_step_ends'; did you mean 'on_step_end'?" in capsys.readouterr().err


def test_a_mark_that_decides_in_one_event_is_shown_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Late:
        @hookimpl(trylast=True)
        def on_step_end(self) -> None: ...

        @hookimpl
        def on_epoch_end(self) -> None: ...

    class Usual:
        @hookimpl
        def on_step_end(self) -> None: ...

    plan = plan_of(Bus([Late(), Usual()]))
    show(plan, None, everything=False)
    table = " ".join(capsys.readouterr().out.split())
    assert "on_step_end usual, late (trylast)" in table
    assert table.count("(trylast)") == 1
    show(plan, "on_step_end", everything=False)
    assert "late hears trylast: behind all plugins; stage" in " ".join(
        capsys.readouterr().out.split()
    )
