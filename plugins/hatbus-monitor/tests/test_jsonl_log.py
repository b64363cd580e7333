"""JsonlLog and CsvLog: what is in the files, and that a resume leaves no step out or twice."""

from __future__ import annotations

import csv
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from hatbus import hookimpl, plugin
from hatbus.errors import JobError, SaveError
from hatbus_monitor.csv_log import CsvLog
from hatbus_monitor.jsonl_log import JsonlLog

SINKS = pytest.mark.parametrize("kind", [JsonlLog, CsvLog])


@plugin(stage="monitor")
class Publishes:
    """One value per step, one per epoch, and things that only some files hold."""

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        if ctx.exception is None:
            ctx.log({"a": torch.tensor(ctx.global_step_id / 2), "step": 7})

    @hookimpl
    def on_epoch_begin(self, ctx: Any) -> None:
        if ctx.step_id == 0:
            ctx.log({"begin": ctx.epoch_id})

    @hookimpl
    def on_epoch_end(self, ctx: Any) -> None:
        if ctx.exception is None:
            ctx.log({"end": float("nan") if ctx.epoch_id else 0.25})
            ctx.log({"note": "text"}, kind="text")
            ctx.log({"picture": torch.zeros(3, 4, 4)}, kind="image")


@plugin(stage="report")
class Late:
    """Publishes after a checkpoint of the same step was made."""

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        ctx.log({"late": ctx.global_step_id})


def file_name(kind: type) -> str:
    return "log.csv" if kind is CsvLog else "log.jsonl"


def rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
    return [json.loads(line) for line in path.read_text().splitlines()]


def of(path: Path, name: str) -> list[tuple[int, Any]]:
    return [(int(row["step"]), float(row[name])) for row in rows(path) if name in row]


def test_lines_hold_what_was_published(trainer, tmp_path) -> None:
    ctx = trainer([Publishes(), JsonlLog()], run_dir=tmp_path).fit(num_epochs=2)
    found = rows(ctx.run_dir / "log.jsonl")
    assert [row["a"] for row in found if "a" in row] == [n / 2 for n in range(12)]
    assert [row["end"] for row in found if "end" in row] == [0.25, "nan"]
    assert found[1] | {"time": 0} == {
        "step": 0,
        "epoch": 0,
        "event": "step",
        "time": 0,
        "a": 0.0,
        "log/step": 7,
    }
    assert [r["event"] for r in found[:2]] == ["epoch_begin", "step"]
    assert found[-1]["event"] == "epoch_end"
    assert found[-1]["note"] == "text"
    assert not any("picture" in row for row in found)


def test_table_has_a_column_per_name_and_grows(trainer, tmp_path) -> None:
    path = tmp_path / "deep" / "run.csv"
    trainer([Publishes(), CsvLog(path, flush_every=2)]).fit(num_epochs=2)
    header = path.read_text().splitlines()[0]
    assert header == "step,epoch,event,time,begin,a,log/step,train/loss,end"
    assert of(path, "a") == [(n, n / 2) for n in range(12)]
    assert [value for _, value in of(path, "begin")] == [0, 1]


@SINKS
def test_nothing_is_read_from_the_device_between_flushes(trainer, tmp_path, reads, kind) -> None:
    seen = []

    class Looks:
        @hookimpl
        def on_step_begin(self) -> None:
            seen.append(reads.count)

    sink = kind(tmp_path / "log", flush_every=4)
    trainer([Publishes(), sink, Looks()], nan="ignore").fit(num_epochs=1)
    assert seen[:5] == [0, 0, 0, 0, 4]


def resumed(trainer: Any, kind: Any, path: Path, save: tuple[int, int], kill: int) -> None:
    """Runs, saves at a place, is killed later, and goes on from what was saved."""

    class Saves:
        saved: dict[str, Any]

        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            if (ctx.epoch_id, ctx.step_id) == save:
                self.saved = run.bus.state_dict()
                self.position = (ctx.position.epoch, ctx.position.step, ctx.position.global_step)
                self.ids = (ctx.epoch_id, ctx.step_id, ctx.global_step_id)
            if ctx.global_step_id == kill:
                run.bus.members["sink"].plugin._rows.flush()
                raise SystemExit

    saves = plugin(stage="checkpoint")(Saves)()
    run = trainer({"p": Publishes(), "c": saves, "l": Late(), "sink": kind(path, flush_every=1)})
    with pytest.raises(SystemExit):
        run.fit(num_epochs=3)

    @plugin(stage="checkpoint")
    class Restores:
        @hookimpl
        def on_loop_begin(self, ctx: Any) -> None:
            ctx.position.epoch, ctx.position.step, ctx.position.global_step = saves.position
            ctx.epoch_id, ctx.step_id, ctx.global_step_id = saves.ids
            again.bus.load_state_dict(saves.saved)

    again = trainer(
        {"p": Publishes(), "c": Restores(), "l": Late(), "sink": kind(path, flush_every=1)}
    )
    again.fit(num_epochs=3)


@SINKS
@pytest.mark.parametrize(
    ("save", "kill"), [((0, 2), 4), ((0, 5), 5), ((0, 5), 8), ((1, 0), 6), ((1, 3), 14)]
)
def test_a_killed_and_resumed_run_has_every_step_once(trainer, tmp_path, kind, save, kill) -> None:
    whole, path = tmp_path / "whole" / file_name(kind), tmp_path / file_name(kind)
    trainer({"p": Publishes(), "l": Late(), "s": kind(whole)}).fit(num_epochs=3)
    resumed(trainer, kind, path, save, kill)
    for name in ("a", "late", "end", "begin"):
        assert str(of(path, name)) == str(of(whole, name)), name  # as text: nan is not nan


@SINKS
def test_a_new_run_keeps_the_old_file(trainer, tmp_path, kind) -> None:
    path = tmp_path / "log"
    trainer([Publishes(), kind(path)]).fit(num_epochs=1)
    before = path.read_text()
    trainer([Publishes(), kind(path)]).fit(num_steps=1)
    assert (tmp_path / "log.bak").read_text() == before
    assert len(path.read_text()) < len(before)


@SINKS
def test_the_rest_is_written_when_the_run_fails(trainer, tmp_path, kind) -> None:
    class Fails:
        @hookimpl
        def on_step_begin(self, global_step_id: int) -> None:
            if global_step_id == 3:
                raise SystemExit

    path = tmp_path / file_name(kind)
    with pytest.raises(SystemExit):
        trainer([Publishes(), Fails(), kind(path)]).fit(num_epochs=1)
    assert of(path, "a") == [(0, 0.0), (1, 0.5), (2, 1.0)]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\n", "\r\n"])
def test_what_some_call_a_line_end_comes_back_from_a_file(tmp_path, mark) -> None:
    from hatbus_monitor.csv_log import Table
    from hatbus_monitor.jsonl_log import JsonLines

    row = {"step": 1, "epoch": 0, "event": "step", "time": 1.0, f"a{mark}b": 2.0}
    text = {**row, "sample": f"first{mark}second"}
    for style, rows_of in ((JsonLines(), [row, text]), (Table(), [row])):
        path = tmp_path / f"log{style.suffix}"
        style.rewrite(path, rows_of)
        style.append(path, rows_of)
        found = [{name: str(value) for name, value in r.items()} for r in style.read(path)]
        assert found == [{name: str(value) for name, value in r.items()} for r in rows_of] * 2


@SINKS
def test_a_value_that_was_published_with_its_graph_keeps_no_activations(
    trainer, tmp_path, kind
) -> None:
    alive: list[int] = []
    kept: list[Any] = []

    class Spread:
        @hookimpl
        def on_forward_end(self, ctx: Any, model_outs: torch.Tensor) -> None:
            big = model_outs * 2
            kept.append(weakref.ref(big))
            ctx.log({"spread": (big * big).mean()})

        @hookimpl
        def on_step_end(self) -> None:
            alive.append(sum(one() is not None for one in kept))

    sink = kind(tmp_path / file_name(kind))
    trainer([Spread(), sink]).fit(num_epochs=1)
    assert max(alive) == 1  # that of ``ctx.latest``
    assert len(of(tmp_path / file_name(kind), "spread")) == 6


def test_a_line_that_was_cut_off_is_dropped(tmp_path) -> None:
    from hatbus_monitor.csv_log import Table
    from hatbus_monitor.jsonl_log import JsonLines

    row = {"step": 1, "epoch": 0, "event": "step", "time": 1.0, "a": 2.0}
    for style in (JsonLines(), Table()):
        path = tmp_path / f"log{style.suffix}"
        style.rewrite(path, [row])
        with path.open("a") as file:
            file.write(path.read_text().splitlines()[-1][:-2])
        assert len(style.read(path)) == 1


def test_a_run_without_a_folder_needs_a_path(trainer) -> None:
    with pytest.raises(JobError, match="jsonl_log: the run has no folder; give jsonl_log a path"):
        trainer([JsonlLog()]).fit(num_epochs=1)


def test_a_place_that_cannot_be_written_is_named(trainer, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"csv_log: cannot write .*choose another path"):
        trainer([CsvLog(tmp_path / "file" / "log.csv")]).fit(num_epochs=1)


def test_flush_every_below_one_is_refused() -> None:
    with pytest.raises(JobError, match="jsonl_log: flush_every is 0"):
        JsonlLog(flush_every=0)
