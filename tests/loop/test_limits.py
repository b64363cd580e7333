"""``limit_steps``, ``max_time`` and ``sanity_steps``: limits of a run beside its plan."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import batches, hearing, tiny_trainer, weights

from hatbus import hookimpl
from hatbus.callbacks import Checkpoint, CosLrUpdater, Validation
from hatbus.cli import main
from hatbus.errors import JobError
from hatbus.loop import stop_wanted
from hatbus.option_values import seconds

JOB = """
import time
import torch
from torch import nn

def build(sleep=0.0):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss(outs, target):
        time.sleep(sleep)
        return nn.functional.mse_loss(outs, target)

    data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(6)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return {"model": model, "optimizer": optimizer, "data": data, "loss": loss, "val": data[:4]}
"""
TOML = """
[run]
entry = "net.py:build"
num_epochs = 4
[plugins.cos_lr]
warmup_len = 8
[plugins.validation]
data_loader = "@val"
callbacks = [{ use = "validation_counts.py:Counts" }]
"""
COUNTS = """
from hatbus import hookimpl, plugin

class Counts:
    @hookimpl
    def on_loop_end(self, ctx):
        ctx.log({"batches": ctx.position.global_step})
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(JOB)
    Path("validation_counts.py").write_text(COUNTS)
    Path("job.toml").write_text(TOML)
    return tmp_path


def summary(folder: Path) -> dict[str, Any]:
    (found,) = folder.glob("runs/**/run.json")
    return json.loads(found.read_text())


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_a_limited_run_begins_as_the_whole_one_and_ends_its_epoch(limit: int) -> None:
    seen: list[torch.Tensor] = []
    whole = tiny_trainer([CosLrUpdater(warmup_len=4)])
    note = hearing(["on_step_end"], lambda *_: seen.append(weights(whole)))
    whole.bus.register(note, "note")
    whole.fit(num_epochs=4)

    ends: list[str] = []
    heard = ["on_epoch_end", "on_validation_end", "on_loop_end"]
    note = hearing(heard, lambda event, _: ends.append(event))
    trainer = tiny_trainer([CosLrUpdater(warmup_len=4), Validation(batches(2)), note])
    ctx = trainer.fit(num_epochs=4, limit_steps=limit)
    assert ctx.position.global_step == limit
    assert torch.equal(weights(trainer), seen[limit - 1])
    assert ends == [*["on_epoch_end", "on_validation_end"] * (1 + (limit - 1) // 3), "on_loop_end"]
    assert ctx.control.stopped is not None
    assert ctx.control.stopped.by == "limit_steps"


def test_a_limit_beyond_the_plan_changes_nothing() -> None:
    one, other = tiny_trainer(), tiny_trainer()
    one.fit(num_epochs=2)
    ctx = other.fit(num_epochs=2, limit_steps=99)
    assert torch.equal(weights(one), weights(other))
    assert ctx.control.stopped is None


def test_validations_take_so_many_batches_of_each_loader() -> None:
    counted: list[int] = []

    class Counts:
        @hookimpl
        def on_loop_end(self, ctx: Any) -> None:
            counted.append(ctx.position.global_step)
            assert ctx.total_steps == ctx.position.global_step

    loaders = {"long": batches(5), "short": batches(1)}
    trainer = tiny_trainer([Validation(loaders, callbacks=[Counts()])])
    trainer.validate(limit_steps=2)
    trainer.fit(num_steps=3, limit_steps=3)
    trainer.fit(num_steps=4)
    trainer.validate()
    assert counted == [2, 1, 3, 1, 5, 1, 5, 1]


def test_the_limit_is_of_one_fit() -> None:
    trainer = tiny_trainer()
    trainer.fit(num_epochs=9, limit_steps=2)
    assert trainer.fit(num_epochs=9, limit_steps=2).position.global_step == 4
    assert trainer.fit(num_epochs=4).position.epoch == 4


def test_sanity_leaves_no_trace() -> None:
    def trained(**options: Any) -> tuple[torch.Tensor, list[Any], dict[str, Any]]:
        heard: list[Any] = []
        note = hearing(["on_log"], lambda _, told: heard.append(dict(told["logs"])))
        trainer = tiny_trainer([Validation(batches(3)), note])
        ctx = trainer.fit(num_epochs=2, **options)
        return weights(trainer), heard, ctx.latest

    (one, heard, latest), (other, also, found) = trained(), trained(sanity_steps=2)
    assert torch.equal(one, other)
    assert heard == also
    assert latest == found


def test_a_validation_that_fails_does_so_before_the_first_step() -> None:
    steps: list[str] = []
    note = hearing(["on_step_begin"], lambda event, _: steps.append(event))
    held_out = [(torch.randn(4, 2), torch.randn(4, 1))]
    trainer = tiny_trainer([Validation(held_out), note])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trainer.fit(num_epochs=1, sanity_steps=1)
    assert steps == []
    with pytest.raises(JobError, match="nothing validates"):
        tiny_trainer().fit(num_epochs=1, sanity_steps=1)


class Slow:
    """Steps that take a while."""

    @hookimpl
    def on_step_end(self) -> None:
        time.sleep(0.05)


def test_a_run_ends_when_its_time_is_over_and_goes_on_exactly(tmp_path: Path) -> None:
    whole = tiny_trainer([CosLrUpdater(warmup_len=4)])
    whole.fit(num_steps=40)
    fits, trainer = 0, whole
    while trainer is whole or trainer.ctx.position.global_step < 40:
        fits += 1
        saving = Checkpoint(str(tmp_path / "saved"), resume="auto")
        trainer = tiny_trainer([CosLrUpdater(warmup_len=4), Slow(), saving])
        ctx = trainer.fit(num_steps=40, max_time=0.4)
        stopped = ctx.control.stopped
        assert stopped is None or (stopped.by, stopped.reason) == ("max_time", "0.4 s")
    assert fits > 1
    assert torch.equal(weights(whole), weights(trainer))


def test_a_validation_in_which_time_runs_out_is_made_up_for(tmp_path: Path) -> None:
    seen: list[int] = []

    class WaitsForTheEnd:
        @hookimpl
        def on_step_end(self, step_id: int) -> None:
            seen.append(step_id)
            while step_id == 1 and not stop_wanted() and len(seen) < 9999:
                seen.append(-1)
                time.sleep(0.01)

    def trainer_of() -> Any:
        validation = Validation(batches(5), callbacks=[WaitsForTheEnd()] if not seen else None)
        saving = Checkpoint(str(tmp_path / "saved"), resume="auto")
        return tiny_trainer([validation, saving])

    tiny_trainer().fit(num_epochs=1)  # what is imported with the first step takes its time
    ctx = trainer_of().fit(num_epochs=1, max_time=3)
    assert [step for step in seen if step >= 0] in ([], [0, 1])  # [] on a machine that is slow
    assert ctx.control.stopped is not None
    validated: list[str] = []
    trainer = trainer_of()
    note = hearing(["on_validation_end"], lambda event, _: validated.append(event))
    trainer.bus.register(note, "note")
    trainer.fit(num_epochs=1)
    assert len(validated) == 1


def test_limit_steps_of_the_command_line(job: Path, capsys: Any) -> None:
    assert main(["run", "job.toml", "--limit-steps", "3"]) == 0
    printed = capsys.readouterr().out
    assert "after 3 steps" in printed
    found = summary(job)
    assert (found["state"], found["reason"]) == ("stopped", "limit_steps: 3 steps")
    assert found["metrics"]["val/batches"]["last"] == 3
    assert "-o run.limit_steps=3" in found["changes"]


def test_max_time_ends_with_75_and_resume_goes_on(job: Path, capsys: Any) -> None:
    limits = ["-o", "run.max_time=0.5 s", "-o", "run.args.sleep=0.1", "-o", "run.sanity_steps=1"]
    assert main(["run", "job.toml", "-p", "checkpoint", *limits]) == 75
    found = summary(job)
    assert (found["state"], found["reason"]) == ("stopped", "max_time: 0.5 s")
    (folder,) = {path.parent for path in job.glob("runs/**/run.json")}
    assert main(["resume", str(folder), "-o", "run.max_time=1 h", "-o", "run.args.sleep=0"]) == 0
    assert summary(job)["state"] == "finished"


def test_max_time_without_a_checkpoint_ends_with_0_and_says_so(job: Path, capsys: Any) -> None:
    limits = ["-o", "run.max_time=0.3", "-o", "run.args.sleep=0.1"]
    assert main(["run", "job.toml", *limits]) == 0
    assert "stopped by max_time, and no checkpoint was saved" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit-steps", "-3"], "--limit-steps is -3; accepted: 1 or more"),
        (["-o", "run.limit_steps=0"], "key 'limit_steps' is 0 in job.toml [run]; accepted: 1 or"),
        (["-o", "run.sanity_steps=-1"], "key 'sanity_steps' is -1 in job.toml [run]; accepted: 0"),
        (["-o", "run.max_time=soon"], "key 'max_time' in job.toml [run] is 'soon'; accepted:"),
        (["-o", "run.max_time=-5"], "key 'max_time' in job.toml [run] is -5; accepted: seconds"),
    ],
)
def test_a_mistake_is_one_line(job: Path, capsys: Any, words: list[str], message: str) -> None:
    assert main(["run", "job.toml", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (90, 90),
        (0.5, 0.5),
        ("90", 90),
        ("45s", 45),
        ("2h30m", 9000),
        ("2h 30min", 9000),
        ("90 min", 5400),
        ("1.5 h", 5400),
        ("1 day 2 hours", 93600),
        ("2:30:00", 9000),
        ("02:30", 150),
        ("1-02:30:00", 95400),
    ],
)
def test_times_are_read_as_people_and_schedulers_write_them(given: Any, wanted: float) -> None:
    assert seconds("max_time", given) == wanted


@pytest.mark.parametrize("given", [0, -1, "", "soon", "2x", "h", "2h30", True, "inf", float("nan")])
def test_what_is_no_time_is_refused(given: Any) -> None:
    with pytest.raises(JobError, match=r"max_time is .*; accepted: seconds above 0, or a time"):
        seconds("max_time", given)
