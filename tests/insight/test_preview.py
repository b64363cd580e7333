"""The preview: schedules run over all steps without training, and the pictures made of it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import batches, tiny_trainer, weights

from hatbus import hookimpl, plugin
from hatbus.cli import main
from hatbus.errors import JobError
from hatbus.insight.preview_chart import COLOURS, mark_row, show
from hatbus.insight.preview_run import Preview, group_label, marks_every, preview
from hatbus.loop.context import Context


@plugin(stage="schedule", writes=("optimizer.lr", "optimizer.momentum"))
class Halve:
    """Halves lr and momentum every epoch, and notes what it heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, int, int]] = []

    @hookimpl
    def on_loop_begin(self, num_epochs: int | None) -> None:
        self.heard.append(("loop", num_epochs or 0, 0, 0))

    @hookimpl
    def on_epoch_begin(self, epoch_id: int, optimizer: Any) -> None:
        self.heard.append(("epoch", epoch_id, 0, 0))
        for group in optimizer.param_groups:
            group.setdefault("initial", group["lr"])
            group["lr"] = group["initial"] * 0.5**epoch_id

    @hookimpl
    def on_step_begin(self, epoch_id: int, step_id: int, global_step_id: int) -> None:
        self.heard.append(("step", epoch_id, step_id, global_step_id))

    def preview_marks(self, ctx: Context) -> list[tuple[int, str]]:
        return [(4, "freeze head"), (99, "never"), *marks_every("save", 1, "epoch", ctx)]


class Trains:
    """Must not hear anything."""

    @hookimpl
    def on_step_begin(self) -> None:
        raise AssertionError("a plugin of another stage heard the preview")


class NoLength:
    """A loader that cannot say how long it is."""

    def __iter__(self) -> Any:
        return iter(batches(3))


def test_schedules_hear_every_step_with_the_ids_of_the_run_and_nobody_trains() -> None:
    halve = Halve()
    trainer = tiny_trainer([halve, Trains()])
    before = weights(trainer)
    found = preview(trainer, num_epochs=2)
    steps = [("step", e, s, 3 * e + s) for e in range(2) for s in range(3)]
    expected = [("epoch", 0, 0, 0), *steps[:3], ("epoch", 1, 0, 0), *steps[3:]]
    assert halve.heard == [("loop", 2, 0, 0), *expected]
    assert found.values["lr"]["0"] == [0.05] * 3 + [0.025] * 3
    assert found.steps == list(range(6))
    assert torch.equal(weights(trainer), before)


def test_fields_that_schedules_claim_are_drawn_beside_lr() -> None:
    assert list(preview(tiny_trainer([Halve()]), num_epochs=1).values) == ["lr", "momentum"]
    assert list(preview(tiny_trainer([]), num_epochs=1).values) == ["lr"]


def test_marks_come_from_the_plugins_and_stay_inside_the_run() -> None:
    found = preview(tiny_trainer([Halve()]), num_epochs=2)
    assert found.marks == {"freeze head": [4], "save": [2, 5]}


def test_a_long_run_keeps_some_steps_and_always_the_last() -> None:
    found = preview(tiny_trainer([Halve()]), num_steps=10_000)
    assert found.steps[-1] == 9_999
    assert len(found.steps) < 6_000
    assert len(found.values["lr"]["0"]) == len(found.steps)


def test_a_loader_without_a_length_needs_steps_or_says_so() -> None:
    with pytest.raises(JobError, match=r"no length.*num_steps, or give --steps-per-epoch N"):
        preview(tiny_trainer([Halve()], data=NoLength()), num_epochs=2)
    assert preview(tiny_trainer([Halve()], data=NoLength()), num_steps=5).total == 5
    found = preview(tiny_trainer([Halve()], data=NoLength()), num_epochs=2, steps_per_epoch=4)
    assert found.total == 8


def test_it_shows_what_the_run_then_does() -> None:
    seen: list[float] = []

    class Note:
        @hookimpl
        def on_step_end(self, optimizer: Any) -> None:
            seen.append(optimizer.param_groups[0]["lr"])

    expected = preview(tiny_trainer([Halve()]), num_epochs=3).values["lr"]["0"]
    tiny_trainer([Halve(), Note()]).fit(num_epochs=3)
    assert seen == expected


@pytest.mark.parametrize(
    ("interval", "unit", "at_end", "steps"),
    [
        (2, "epoch", False, [5]),
        (2, "epoch", True, [5, 8]),
        (4, "step", False, [3, 7]),
        (3, "epoch", True, [8]),
        (None, "step", False, []),
        (0, "epoch", False, []),
    ],
)
def test_marks_every_follows_the_rule_of_intervals(
    interval: int | None, unit: str, at_end: bool, steps: list[int]
) -> None:
    ctx = tiny_trainer([]).ctx
    ctx.total_steps = 9
    found = marks_every("save", interval, unit, ctx, at_end=at_end)
    assert found == [(step, "save") for step in steps]


def test_groups_with_one_curve_share_a_label() -> None:
    assert group_label(["0", "1", "2", "5", "head"]) == "groups 0-2, 5, head"
    found = Preview(2, None, [0, 1], {"lr": {"0": [1, 1], "1": [2, 1], "2": [1, 1]}})
    assert [label for label, _ in found.curves("lr")] == ["groups 0, 2", "group 1"]
    found.values["lr"].pop("1")
    assert found.curves("lr") == [("lr", [1, 1])]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_chart_fits_the_terminal_and_names_ends_and_marks(width: int) -> None:
    values = [0.1 * (1 - step / 100) for step in range(100)]
    groups = {"a": values, "b": [v / 2 for v in values]}
    found = Preview(100, 10, list(range(100)), {"lr": groups}, {"validation": [9, 99]})
    console = Console(width=width, record=True, file=io.StringIO())
    show(found, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for word in ("lr", "group a", "0.1", "99", "100 steps", "validation"):
        assert word in text
    assert ("10 epochs" in text) == (width >= 80)
    assert lines[-1].count("▲") + lines[-1].count("+") == 2


def test_a_mark_stands_where_its_step_is() -> None:
    assert mark_row([0, 50, 100], 101, 11, "+") == "+    +    +"
    assert len(COLOURS) == len(set(COLOURS))


def write_job(folder: Path) -> Path:
    """A job without plugins."""
    (folder / "train.py").write_text(
        "import torch\n"
        "def build():\n"
        "    model = torch.nn.Linear(1, 1)\n"
        "    groups = [{'params': [model.weight], 'name': 'weight'},"
        " {'params': [model.bias], 'lr': 0.2}]\n"
        "    optimizer = torch.optim.SGD(groups, lr=0.1)\n"
        "    return model, optimizer, [(torch.ones(1, 1), torch.ones(1, 1))] * 5,"
        " torch.nn.functional.mse_loss\n"
    )
    job = folder / "job.toml"
    job.write_text('[run]\nentry = "train.py:build"\nnum_epochs = 4\nrun_dir = "out"\n')
    return job


def test_the_command_draws_in_the_terminal_and_leaves_no_files(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(tmp_path)
    monkeypatch.chdir(tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert main(["preview", str(job)]) == 0
    shown = capsys.readouterr().out
    assert "20 steps, 4 epochs" in shown
    assert "group weight" in shown
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == files


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_command_writes_a_picture(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "pictures" / f"run{suffix}"
    assert main(["preview", str(write_job(tmp_path)), "--out", str(target)]) == 0
    start = target.read_bytes()[:100]
    assert start.startswith(b"\x89PNG") if suffix == ".png" else b"<?xml" in start


def test_a_picture_of_another_kind_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert main(["preview", str(write_job(tmp_path)), "--out", "run.jpg"]) == 2
    assert "--out is 'run.jpg'; accepted: a file in .png, .svg, .pdf" in capsys.readouterr().err


def test_without_matplotlib_the_command_says_how_to_get_it(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["preview", str(write_job(tmp_path)), "--out", "run.png"]) == 2
    assert "pip install 'hatbus[plot]'" in capsys.readouterr().err


def test_many_groups_make_a_picture_with_a_short_legend(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from hatbus.insight.preview_picture import draw

    groups = {str(n): [0.1 * 0.8**n] * 10 for n in range(30)}
    marks = {"validation": [4, 9], "freeze backbone": [5], "checkpoint": list(range(10))}
    draw(Preview(10, 5, list(range(10)), {"lr": groups}, marks), tmp_path / "many.svg")
    text = (tmp_path / "many.svg").read_text()
    assert text.count("<!-- group ") == 8


def test_a_value_that_never_changes_is_drawn_above_zero() -> None:
    found = preview(tiny_trainer([]), num_epochs=2)
    text = io.StringIO()
    show(found, Console(file=text, width=60, force_terminal=False))
    ticks = [
        line.split()[0] for line in text.getvalue().splitlines() if "┤" in line or "+ " in line
    ]
    assert ticks[:3] == ["0.05", "0.025", "0"]


def test_a_schedule_that_follows_a_metric_is_drawn_as_if_it_never_stood_still() -> None:
    from hatbus_lr import TorchLr

    plateau = TorchLr("ReduceLROnPlateau", update_by="epoch", metric="val/loss")
    found = preview(tiny_trainer([plateau]), num_epochs=3)
    assert set(found.values["lr"]["0"]) == {0.05}
