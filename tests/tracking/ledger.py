"""A tracker on a service of this test's own, which keeps points in SQLite, and small runs of it."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hatbus import Context, Trainer, hookimpl, plugin
from hatbus.errors import JobError
from hatbus.tracking import Described, Row, Service, Tracker
from hatbus_checkpoint import Checkpoint

TABLE = "create table if not exists points (step, name, value, time)"


class Ledger(Service):
    """Keeps every point that it is given, as often as it is given.

    Args:
        path: of the database; while a file ``down`` is beside it, the service fails.
        is_ordered: it tells its last step, and takes a step once; else it takes equal ones once.
    """

    def __init__(self, path: Path, *, is_ordered: bool) -> None:
        self.path, self.is_ordered = path, is_ordered

    def open(self, run: Described) -> int | None:
        self._answer()
        with sqlite3.connect(self.path) as db:
            db.execute(TABLE)
            last = db.execute("select max(step) from points").fetchone()[0]
        (self.path.parent / f"opened-{run.id}").write_text(run.plan)
        return (-1 if last is None else last) if self.is_ordered else None

    def send(self, rows: Sequence[Row]) -> None:
        self._answer()
        with sqlite3.connect(self.path) as db:
            for row in rows:
                values = {**row.scalars, **row.texts}
                values |= {n: f.read_bytes()[1:4] for n, f in row.images.items()}
                values |= {n: sum(counts) for n, (counts, _) in row.histograms.items()}
                for name, value in values.items():
                    point = (row.step, name, value, row.time)
                    same = "select 1 from points where step=? and name=? and value=? and time=?"
                    if self.is_ordered or not db.execute(same, point).fetchone():
                        db.execute("insert into points values (?, ?, ?, ?)", point)

    def close(self, how: str, seconds: float) -> None:
        (self.path.parent / "ended").write_text(how)

    def where(self) -> str:
        return "http://me:hunter2@ledger.example/run"

    def _answer(self) -> None:
        down = self.path.parent / "down"
        if down.exists():
            down.write_text(down.read_text() + ".")
            raise ConnectionError("no answer from http://me:hunter2@ledger.example")


class LedgerTracker(Tracker):
    """Delivers to a ``Ledger``."""

    plugin_name = "ledger"

    def __init__(
        self, path: str | Path, is_ordered: bool = True, refuses: bool = False, **more: Any
    ) -> None:
        super().__init__(**more)
        self.path, self.is_ordered, self.refuses = Path(path), is_ordered, refuses
        self.options = {"path": str(path), "is_ordered": is_ordered}

    def connect(self) -> Service:
        if self.refuses:
            raise JobError("ledger: nobody is logged in")
        return Ledger(self.path, is_ordered=self.is_ordered)


def points(path: Path, name: str) -> list[tuple[int, Any]]:
    """Step and value of one name, in the order that they arrived."""
    with sqlite3.connect(path) as db:
        found = db.execute("select step, value from points where name=? order by rowid", (name,))
        return found.fetchall()


@plugin(stage="monitor")
class Publishes:
    """One value per step, and one of each kind per epoch."""

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        if ctx.exception is None:
            ctx.log({"loss": ctx.losses["loss"], "n": ctx.global_step_id})

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        if ctx.exception is None:
            ctx.log({"epoch_loss": ctx.epoch_id / 2})
            ctx.log({"picture": torch.rand(3, 4, 5)}, "image")
            ctx.log({"weights": ctx.model.weight}, "histogram")
            ctx.log({"note": f"epoch {ctx.epoch_id}"}, "text")


@plugin(stage="report")
class Dies:
    """Kills the process after a step, once what was published by then has been delivered."""

    def __init__(self, step: int, wait: float) -> None:
        self.step, self.wait = step, wait

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        if ctx.global_step_id == self.step:
            time.sleep(self.wait)
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, tracker: Any, *more: object, epochs: int = 3, **options: Any) -> Context:
    """20 steps an epoch, a checkpoint every 7."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = torch.randn(20, 4, 3)
    model = nn.Linear(3, 1)
    saving = Checkpoint(str(folder / "saved"), save_interval=7, interval_by="step", resume="auto")
    plugins = {"publishes": Publishes(), "checkpoint": saving, "ledger": tracker}
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05),
        list(zip(inputs, inputs.sum(2, keepdim=True), strict=True)),
        nn.functional.mse_loss,
        {**plugins, **{f"more_{n}": one for n, one in enumerate(more)}},
        run_dir=folder / "runs",
        run_name="one",
        resume="auto",
        **options,
    )
    return trainer.fit(num_epochs=epochs)


def killed(folder: Path, tracker: Any, step: int, wait: float = 0.0) -> None:
    """Runs in a process of its own, which is killed after a step."""
    child = os.fork()
    if child == 0:
        try:
            run(folder, tracker, Dies(step, wait))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
