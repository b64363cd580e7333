"""hatbus.testing: what it records, and its fixtures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import MeanLoss

from hatbus import hookimpl, plugin
from hatbus.testing import (
    ContractFailure,
    EventLog,
    Occasions,
    PluginProject,
    Reads,
    TinyJob,
    batches,
    failing,
    tiny_trainer,
)
from hatbus.testing.failures import Failure

pytest_plugins = ["hatbus.testing"]
torch.set_num_threads(1)


# ---- the event log ------------------------------------------------------------------------------


def test_log_hears_every_event_of_the_loop_in_order(event_log: EventLog) -> None:
    tiny_trainer([event_log]).fit(num_epochs=1)
    event_log.assert_order(
        "on_loop_begin", "on_epoch_begin", "on_step_begin", "on_batch_begin", "forward",
        "on_forward_end", "compute_loss", "backward", "on_batch_end", "clip_gradients",
        "optimizer_step", "on_step_end", "on_epoch_end", "on_loop_end",
    )  # fmt: skip
    event_log.assert_count("on_step_end", 4)
    assert event_log.steps("on_step_end") == [0, 1, 2, 3]
    assert [*event_log.losses[0]] == ["loss"]


def test_log_and_occasions_hear_every_event_there_is(event_log: EventLog) -> None:
    from hatbus.events.training import EVENTS

    with pytest.raises(Failure):
        tiny_trainer([Occasions(), event_log, failing("on_epoch_end")]).fit(num_epochs=1)
    assert set(event_log.events) == set(EVENTS)


def test_log_changes_no_bit_of_a_run(event_log: EventLog) -> None:
    runs = [tiny_trainer(plugins) for plugins in ([], [event_log])]
    for run in runs:
        run.fit(num_epochs=2)
    states = [run.ctx.model.state_dict() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_log_tells_tasks_and_published_values_apart(event_log: EventLog) -> None:
    data = {"a": batches(2), "b": batches(2, seed=1)}
    tiny_trainer([MeanLoss(), event_log], data=data).fit(num_steps=8)
    assert event_log.count("on_batch_end", "a") == event_log.count("on_batch_end", "b") == 8
    event_log.assert_published("mean_loss", [3, 7])
    assert all(value > 0 for _, value in event_log.published("mean_loss"))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda log: log.assert_count("on_step_end", 3), r"heard 2 times, not 3; heard:\nstep 0"),
        (
            lambda log: log.assert_order("on_epoch_end", "on_step_end"),
            r"not heard after on_epoch_e",
        ),
        (lambda log: log.count("on_step_ends"), r"did you mean 'on_step_end'"),
        (lambda log: log.assert_published("lss"), r"nothing was published as 'lss'.*'loss'"),
        (lambda log: log.assert_published("loss", [1]), r"at steps \[0, 1\], not \[1\]"),
    ],
)
def test_log_says_what_it_heard_when_an_assertion_fails(
    ask: Any, message: str, event_log: EventLog
) -> None:
    @plugin()
    class Loss:
        @hookimpl
        def on_step_end(self, ctx: Any, losses: Any) -> None:
            ctx.log({"loss": losses["loss"].detach()})

    tiny_trainer([Loss(), event_log]).fit(num_steps=2)
    with pytest.raises(ContractFailure, match=f"(?s){message}"):
        ask(event_log)


# ---- the fixtures -------------------------------------------------------------------------------


WAITING: list[Callable[[torch.Tensor], object]] = [
    lambda t: t.sum().item(),
    lambda t: float(t[0]),
    lambda t: bool(t[0]),
    lambda t: t.tolist(),
    lambda t: t.cpu(),
    lambda t: t.to("cpu"),
    lambda t: t.numpy(),
    lambda t: t[t > 0],
    lambda t: t.nonzero(),
    lambda t: t.unique(),
    lambda t: torch.equal(t, t),
]


@pytest.mark.parametrize("read", WAITING)
def test_reads_count_what_would_wait_for_a_gpu(
    read: Callable[[torch.Tensor], object], reads: Reads
) -> None:
    read(torch.ones(3))
    assert reads.count == 1


def test_reads_leave_alone_what_stays_on_the_device(reads: Reads) -> None:
    value = torch.ones(3)
    value.mul(2).sum().clamp(max=1.0).detach().clone()
    torch.where(value > 0, value, 0.0)
    value[torch.tensor([0, 2])].to(torch.float64)
    torch.stack([value, value]).isfinite().all()
    assert reads.count == 0


def test_installed_project_runs_in_a_tiny_job(
    plugin_project: PluginProject, tiny_job: Callable[..., TinyJob]
) -> None:
    source = """
    from hatbus import hookimpl, plugin

    @plugin(stage="report")
    class Stars:
        def __init__(self, count: int = 1) -> None:
            self.count = count

        @hookimpl
        def on_loop_end(self):
            print("*" * self.count)
    """
    plugin_project.install("acme-stars", {"stars": "acme_stars:Stars"}, {"acme_stars.py": source})
    job = tiny_job("[plugins.stars]\ncount = 7")
    found = job.run()
    assert found.returncode == 0, found.stderr
    assert "*******" in found.stdout.splitlines()


def test_project_is_gone_after_its_test() -> None:
    assert not [path for path in sys.path if path.endswith("site") and "pytest" in path]


def test_kit_imports_pytest_and_torch_only_when_used() -> None:
    code = (
        "import sys, hatbus.testing\n"
        "assert not {'pytest', 'torch'} & set(sys.modules)\n"
        "from hatbus.testing import PluginContract, EventLog, TinyJob, PluginProject\n"
        "assert 'pytest' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
