"""Trackers: every point arrives once, whatever becomes of the process or the service."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from hatbus import Context, hookimpl, plugin
from hatbus.cli import main
from hatbus.errors import JobError
from hatbus.testing import PluginContract
from hatbus.tracking import delivery

from .ledger import LedgerTracker, killed, points, run

STEPS = list(range(60))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "PAUSE", 0.02)
    monkeypatch.setattr(delivery, "AGAIN", (0.05, 0.1))


@pytest.mark.parametrize(
    ("is_ordered", "live"),
    [(True, True), (False, True), (True, False)],
    ids=["ordered", "idempotent", "behind checkpoints"],
)
def test_no_point_is_lost_or_there_twice_after_kills(
    tmp_path: Path, is_ordered: bool, live: bool
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()

    def tracker(folder: Path) -> LedgerTracker:
        return LedgerTracker(folder / "ledger.db", is_ordered, live=live)

    run(whole, tracker(whole))
    killed(broken, tracker(broken), 4)
    killed(broken, tracker(broken), 25, wait=0.3)
    killed(broken, tracker(broken), 33, wait=0.3)
    killed(broken, tracker(broken), 34)
    run(broken, tracker(broken))
    for name in ("loss", "n", "epoch_loss", "note", "picture", "weights"):
        assert sorted(points(broken / "ledger.db", name)) == points(whole / "ledger.db", name), name
    assert [step for step, _ in points(whole / "ledger.db", "loss")] == STEPS
    assert [step for step, _ in points(whole / "ledger.db", "note")] == [19, 39, 59]
    assert points(whole / "ledger.db", "picture")[0][1] == b"PNG"
    assert points(whole / "ledger.db", "weights")[0][1] == 3
    assert len(list(broken.glob("opened-*"))) == 1


def test_live_points_arrive_while_the_run_is_on_and_others_behind_a_checkpoint(
    tmp_path: Path,
) -> None:
    for live, last in ((True, 16), (False, 12)):  # step 13 is that of the checkpoint, and open
        folder = tmp_path / str(live)
        folder.mkdir()
        killed(folder, LedgerTracker(folder / "ledger.db", live=live), 17, wait=0.5)
        assert points(folder / "ledger.db", "n")[-1][0] == last


def test_a_service_that_fails_is_warned_of_once_and_gets_everything_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    down = tmp_path / "down"
    down.write_text("")

    class Repairs:
        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            if ctx.global_step_id == 40:
                while len(down.read_text()) < 3:  # it has been tried again
                    pass
                down.unlink()

    with caplog.at_level(logging.INFO, "hatbus"):
        run(tmp_path, LedgerTracker(tmp_path / "ledger.db"), Repairs())
    assert [step for step, _ in points(tmp_path / "ledger.db", "n")] == STEPS
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len([line for line in said if "does not take points" in line]) == 1
    assert "ConnectionError" in said[0]
    assert "takes points again" in caplog.text
    assert "hunter2" not in caplog.text


def test_what_is_left_at_the_end_is_said_kept_and_delivered_by_a_command(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "down").write_text("")
    run(tmp_path, LedgerTracker(tmp_path / "ledger.db"))
    assert "points have not been delivered" in caplog.text
    assert not (tmp_path / "ended").exists()
    (tmp_path / "down").unlink()

    class Found:
        def load(self) -> type:
            return LedgerTracker

    monkeypatch.setattr("hatbus.discovery.lookup", lambda name: Found())
    assert main(["deliver", str(tmp_path / "runs")]) == 0
    assert "ledger: " in capsys.readouterr().out
    assert [step for step, _ in points(tmp_path / "ledger.db", "n")] == STEPS
    assert (tmp_path / "ended").read_text() == "finished"
    assert main(["deliver", str(tmp_path / "runs")]) == 0
    assert "ledger: 0 points delivered" in capsys.readouterr().out
    assert len(points(tmp_path / "ledger.db", "n")) == 60


@pytest.mark.parametrize(
    ("place", "said"),
    [("nothing", "no run in"), (".", "no tracker has left anything")],
)
def test_deliver_says_when_there_is_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, said: str
) -> None:
    assert main(["deliver", str(tmp_path / place)]) == 2
    assert said in capsys.readouterr().err


def test_a_missing_login_is_one_line_before_training(tmp_path: Path) -> None:
    steps: list[int] = []

    class Steps:
        @hookimpl
        def on_step_end(self, ctx: Context) -> None:
            steps.append(ctx.global_step_id)

    with pytest.raises(JobError, match="ledger: nobody is logged in"):
        run(tmp_path, LedgerTracker(tmp_path / "ledger.db", refuses=True), Steps())
    assert steps == []


def test_a_run_that_fails_is_ended_as_failed_with_all_its_points(tmp_path: Path) -> None:
    class Fails:
        @hookimpl
        def on_step_begin(self, ctx: Context) -> None:
            if ctx.global_step_id == 11:
                raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        run(tmp_path, LedgerTracker(tmp_path / "ledger.db"), Fails())
    assert (tmp_path / "ended").read_text() == "failed"
    assert [step for step, _ in points(tmp_path / "ledger.db", "n")] == STEPS[:11]


def test_settings_and_plan_are_described_without_secrets(tmp_path: Path) -> None:
    config = {"api_key": "hunter2", "data": "https://me:hunter2@host/data", "depth": 3}
    run(tmp_path, LedgerTracker(tmp_path / "ledger.db", config=config))
    kept = json.loads((tmp_path / "runs/one/ledger/run.json").read_text())
    assert kept["config"]["depth"] == 3
    assert kept["config"]["optimizer"]["lr"] == 0.05
    assert kept["config"]["data"] == "https://***@host/data"
    assert kept["name"] == "one"
    assert "checkpoint: " in kept["plan"]
    assert "on_log: ledger hears (rank 0)" in kept["plan"]
    files = [f for f in (tmp_path / "runs").rglob("*") if f.is_file()]
    assert not [f for f in files if b"hunter2" in f.read_bytes()]
    described = next(tmp_path.glob("opened-*"))
    assert described.read_text() == kept["plan"]


def test_a_run_that_starts_anew_is_another_run_of_the_service(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    first = run(tmp_path, LedgerTracker(ledger), epochs=1)
    known = json.loads((first.run_dir / "ledger/run.json").read_text())["id"]
    run(tmp_path, LedgerTracker(ledger), epochs=2)
    assert [p.name for p in tmp_path.glob("opened-*")] == [f"opened-{known}"]
    assert [step for step, _ in points(ledger, "n")] == STEPS[:40]


def test_a_tracker_among_the_callbacks_of_a_validation_is_refused(tmp_path: Path) -> None:
    from hatbus_validation import Validation

    batches = [(torch.randn(4, 3), torch.randn(4, 1))]
    inner = Validation(batches, callbacks=[LedgerTracker(tmp_path / "ledger.db")], val_interval=1)
    with pytest.raises(JobError, match="among the plugins of the run"):
        run(tmp_path, LedgerTracker(tmp_path / "other.db"), inner)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": ""}, "ledger: name is ''"),
        ({"config": 3}, "ledger: config is 3; accepted: a table"),
        ({"checkpoints": "bset"}, "ledger: checkpoints is 'bset'"),
        ({"live": "yes"}, "ledger: live is 'yes'; accepted: true, false"),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(JobError, match=said):
        LedgerTracker(tmp_path / "ledger.db", **options)


@plugin(stage="monitor")
class EveryStep:
    """Publishes the losses of every step."""

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        if ctx.exception is None:
            ctx.log({name: loss.detach().clone() for name, loss in ctx.losses.items()})


class TestLedger(PluginContract):
    """The contract of every plugin."""

    observer = True

    def make(self) -> object:
        return LedgerTracker(self.folder / "ledger.db", is_ordered=False)

    def make_another(self) -> object:
        return LedgerTracker(self.folder / "other.db", save_dir=self.folder / "other")

    def companions(self) -> dict[str, object]:
        return {"every_step": EveryStep()}

    def outcome(self, plugin: Any) -> Any:
        return sorted(points(self.folder / "ledger.db", "loss"))
