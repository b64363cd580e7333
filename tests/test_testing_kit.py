"""hatbus.testing: what it records, and that every broken plugin fails the clause that names it."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from hatbus import hookimpl, plugin
from hatbus.errors import PluginError
from hatbus.testing import (
    ContractFailure,
    EventLog,
    Occasions,
    PluginContract,
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


def contract(make: Callable[[], object], **said: Any) -> PluginContract:
    """A contract of a plugin, without a file of its own."""
    return type("TestBroken", (PluginContract,), {"make": lambda self: make(), **said})()


# ---- a good plugin ------------------------------------------------------------------------------


@plugin(stage="monitor")
class MeanLoss:
    """Publishes the mean loss of every four steps; remembers what it has to."""

    def __init__(self) -> None:
        self.sum: Any = 0.0
        self.count = 0

    @hookimpl
    def on_step_end(self, ctx: Any, losses: dict[str, torch.Tensor], global_step_id: int) -> None:
        if ctx.exception is not None:  # then there may be no losses
            return
        self.sum = self.sum + torch.stack([v.detach() for v in losses.values()]).sum()
        self.count += 1
        if (global_step_id + 1) % 4 == 0:
            ctx.log({"mean_loss": self.sum / self.count})
            self.sum, self.count = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self.sum, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sum, self.count = state["sum"], state["count"]


class TestMeanLoss(PluginContract):
    observer = True
    two_processes = True
    most_us_per_step = 100_000.0

    def make(self) -> object:
        return MeanLoss()


@plugin(stage="schedule", writes="optimizer.lr")
class Halve:
    """Halves the learning rate every other step."""

    def __init__(self) -> None:
        self.steps = 0

    @hookimpl
    def on_step_begin(self, optimizer: Any) -> None:
        if self.steps % 2:
            optimizer.param_groups[0]["lr"] *= 0.5
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class TestHalve(PluginContract):
    def make(self) -> object:
        return Halve()


# ---- broken ones --------------------------------------------------------------------------------


class Broken:
    """Base of the broken: a place, and an event in which nothing happens."""

    @hookimpl
    def on_loop_begin(self, ctx: Any) -> None:
        pass


@plugin()
class Misspelt(Broken):
    @hookimpl
    def on_step_ende(self) -> None: ...


@plugin()
class UnknownArgument(Broken):
    @hookimpl
    def on_step_end(self, optimiser: Any) -> None: ...


@plugin()
class Unmarked(Broken):
    def on_step_end(self) -> None: ...


@plugin()
class OnlySaves(Broken):
    def state_dict(self) -> dict[str, Any]:
        return {}


@plugin()
class Unstorable(Broken):
    def state_dict(self) -> dict[str, Any]:
        return {"best": {"when": threading.Lock()}}

    def load_state_dict(self, state: Any) -> None: ...


@plugin()
class ForgetsHalf(Broken):
    def __init__(self) -> None:
        self.a = self.b = 0

    @hookimpl
    def on_step_end(self) -> None:
        self.a += 1
        self.b += 1

    def state_dict(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b}

    def load_state_dict(self, state: Any) -> None:
        self.a = state["a"]


@plugin(stage="schedule", writes="optimizer.lr")
class HiddenState(Broken):
    def __init__(self) -> None:
        self.steps = 0

    @hookimpl
    def on_step_begin(self, optimizer: Any) -> None:
        self.steps += 1
        optimizer.param_groups[0]["lr"] = 0.1 / self.steps


@plugin()
class HiddenMetric(Broken):
    def __init__(self) -> None:
        self.steps = 0

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        self.steps += 1
        ctx.log({"steps": self.steps})


@plugin(stage="schedule")
class ClaimsNothing(Broken):
    @hookimpl
    def on_step_begin(self, optimizer: Any, global_step_id: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + global_step_id)


@plugin()
class SetsThreads(Broken):
    def __init__(self) -> None:
        torch.set_float32_matmul_precision("high")


@plugin()
class PatchesTheLoss(Broken):
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = torch.nn.TransformerEncoder  # anything but what is patched
        assert plain
        forward = torch.nn.Linear.forward
        monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: forward(self, x) * 1.01)


@plugin()
class Nudges(Broken):
    @hookimpl
    def on_step_end(self, model: Any) -> None:
        with torch.no_grad():
            model.head.bias += 1e-6


@plugin()
class DrawsNumbers(Broken):
    @hookimpl
    def on_epoch_end(self) -> None:
        random.random()


@plugin()
class DrawsWhenMade(Broken):
    def __init__(self) -> None:
        torch.rand(1)


@plugin()
class LeavesEval(Broken):
    @hookimpl
    def on_epoch_end(self, model: Any) -> None:
        model.eval()


@plugin()
class Stops(Broken):
    @hookimpl
    def on_step_end(self, ctx: Any, global_step_id: int) -> None:
        if global_step_id == 5:
            ctx.control.stop("run", "enough")


@plugin()
class ReadsItem(Broken):
    @hookimpl
    def on_step_end(self, losses: dict[str, torch.Tensor]) -> None:
        self.last = sum(loss.item() for loss in losses.values())


@plugin()
class ReadsCpu(Broken):
    @hookimpl
    def on_batch_end(self, model_outs: torch.Tensor) -> None:
        self.last = model_outs.detach().cpu()


@plugin()
class Branches(Broken):
    @hookimpl
    def skip_update(self, losses: dict[str, torch.Tensor]) -> str | None:
        return "loss is large" if losses["loss"] > 1e9 else None


@plugin()
class NeedsItsBegin:
    @hookimpl
    def on_loop_begin(self) -> None:
        self.file = io.StringIO()

    @hookimpl
    def on_loop_end(self) -> None:
        self.file.close()


@plugin()
class Swallows(Broken):
    @hookimpl(wrapper=True)
    def run_loop(self) -> Generator[None, Any, Any]:
        try:
            return (yield)
        except Exception:  # the fault
            return 1


@plugin()
class Replaces(Broken):
    @hookimpl(wrapper=True)
    def run_step(self) -> Generator[None, Any, Any]:
        try:
            return (yield)
        except Exception as error:
            raise RuntimeError("step failed") from error


@plugin()
class ClosesTwice:
    open = True

    @hookimpl
    def on_exception(self) -> None:
        self.close()

    @hookimpl
    def on_loop_end(self) -> None:
        self.close()

    def close(self) -> None:
        if not self.open:
            raise ValueError("closed already")
        self.open = False


@plugin()
class LeavesAHook(Broken):
    @hookimpl
    def on_loop_begin(self, model: Any) -> None:
        model.head.register_forward_hook(lambda *_: None)


@plugin()
class LeavesAThread(Broken):
    event = threading.Event()

    @hookimpl
    def on_loop_begin(self) -> None:
        threading.Thread(target=self.event.wait, args=(30,), daemon=True, name="poll").start()


@plugin()
class LeavesStdout(Broken):
    @hookimpl
    def on_loop_begin(self) -> None:
        sys.stdout = io.StringIO()


@plugin()
class SharesAList(Broken):
    seen: list[int] = []  # noqa: RUF012 - the fault

    @hookimpl
    def on_step_end(self, global_step_id: int) -> None:
        self.seen.append(global_step_id)


@plugin()
class TakesAName(Broken):
    @hookimpl
    def on_loop_begin(self, ctx: Any) -> None:
        ctx.weights.add("mine", lambda: None)


@plugin(stage="schedule", writes="optimizer.lr")
class CountsBatches(Broken):
    def __init__(self) -> None:
        self.batches = 0

    @hookimpl
    def on_batch_begin(self, optimizer: Any) -> None:
        self.batches += 1
        optimizer.param_groups[0]["lr"] = 0.1 / self.batches


@plugin()
class NeedsOneLoss(Broken):
    @hookimpl
    def on_step_end(self, losses: dict[str, torch.Tensor]) -> None:
        self.last = losses["loss"].detach()


@plugin()
class ReturnsSomething(Broken):
    @hookimpl
    def on_step_end(self) -> bool:
        return True


@plugin(before="broken")
class BeforeItself(Broken): ...


class Undeclared(Broken): ...


ONE = Broken()
OBSERVER = {"observer": True}
FAULTS: list[tuple[Any, str, str, dict[str, Any]]] = [
    (Misspelt, "registers", r"unknown event 'on_step_ende'; did you mean 'on_step_end'", {}),
    (UnknownArgument, "registers", r"unknown argument 'optimiser'; did you mean 'optimizer'", {}),
    (Unmarked, "registers", r"on_step_end is named like an event but not marked", {}),
    (lambda: ONE, "registers", r"make\(\) gave the same object twice", {}),
    (lambda: Broken, "registers", r"same object", {}),
    (BeforeItself, "registers", r"before or after itself", {}),
    (Undeclared, "declares_its_order", r"Undeclared declares no place", {}),
    (ReturnsSomething, "moments_return_nothing", r"on_step_end returned True", {}),
    (ClaimsNothing, "claims_what_it_writes", r"changed optimizer.lr at step 0", {}),
    (OnlySaves, "state_round_trip", r"has state_dict and no load_state_dict", {}),
    (Unstorable, "state_round_trip", r"state\['best'\]\['when'\] is a _thread.lock", {}),
    (ForgetsHalf, "state_round_trip", r"state of broken\['b'\] is 6 in one, 0 in", {}),
    (HiddenState, "resumes_as_if_never_stopped", r"resumed after step 6 .* not the run", {}),
    (HiddenMetric, "resumes_as_if_never_stopped", r"published values.*state_dict\(\)", {}),
    (SetsThreads, "off_means_bit_identical", r"making it changes .* matmul precision", {}),
    (Nudges, "observer_changes_nothing", r"at step 0 weights\['head.bias'\] differs", OBSERVER),
    (DrawsNumbers, "observer_changes_nothing", r"at step 4 random\['python'\]", OBSERVER),
    (DrawsWhenMade, "observer_changes_nothing", r"making it draws random numbers", OBSERVER),
    (LeavesEval, "observer_changes_nothing", r"at step 4 modes\[''\]", OBSERVER),
    (Stops, "observer_changes_nothing", r"the run has 6 steps, without it 12", OBSERVER),
    (ReadsItem, "reads_no_values_between_intervals", r"item\(\) at step 0, .* line \d+", {}),
    (ReadsCpu, "reads_no_values_between_intervals", r"cpu\(\) at step 0", {}),
    (Branches, "reads_no_values_between_intervals", r"item\(\) at step 0", {}),
    (NeedsItsBegin, "survives_failures_of_others", r"teardown failed: AttributeError", {}),
    (Swallows, "survives_failures_of_others", r"the error was swallowed", {}),
    (Replaces, "survives_failures_of_others", r"RuntimeError: step failed was raised in its", {}),
    (ClosesTwice, "survives_failures_of_others", r"teardown failed: .*ValueError: closed", {}),
    (LeavesAHook, "survives_failures_of_others", r"left behind: a hook on module 'head'", {}),
    (LeavesAThread, "survives_failures_of_others", r"left behind: running thread 'poll'", {}),
    (LeavesStdout, "survives_failures_of_others", r"left behind: sys.stdout replaced", {}),
    (SharesAList, "two_instances_do_not_collide", r"class attribute .*SharesAList.seen", {}),
    (TakesAName, "two_instances_do_not_collide", r"view named 'mine' exists already", {}),
    (CountsBatches, "works_under_accumulation", r"count steps \(on_step_end\), not batches", {}),
    (NeedsOneLoss, "works_with_many_tasks", r"loss", {}),
]


@pytest.mark.parametrize(
    ("make", "clause", "message", "said"),
    FAULTS,
    ids=[f"{getattr(m, '__name__', m)}-{c}" for m, c, _, _ in FAULTS],
)
def test_a_broken_plugin_fails_the_clause_that_names_its_fault(
    make: Any, clause: str, message: str, said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    precision = torch.get_float32_matmul_precision()
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back after the test
    LeavesAThread.event.clear()
    try:
        with pytest.raises((ContractFailure, PluginError, KeyError), match=f"(?s){message}"):
            getattr(contract(make, **said), f"test_{clause}")()
    finally:
        torch.set_float32_matmul_precision(precision)
        LeavesAThread.event.set()


def test_every_clause_has_a_broken_plugin() -> None:
    clauses = {name.removeprefix("test_") for name in vars(PluginContract) if name[:5] == "test_"}
    elsewhere = {"works_on_two_processes", "overhead_is_reported"}
    assert clauses - {clause for _, clause, _, _ in FAULTS} == elsewhere


def test_a_plugin_that_patches_torch_when_made_fails_off(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = contract(lambda: PatchesTheLoss(monkeypatch))
    with pytest.raises(ContractFailure, match=r"made but off, but at step 0 weights"):
        broken.test_off_means_bit_identical()


def test_a_plugin_that_costs_too_much_fails_its_own_limit() -> None:
    with pytest.raises(ContractFailure, match=r"costs .* us a step; allowed: 0"):
        contract(Halve, most_us_per_step=0.0).test_overhead_is_reported(lambda *_: None)


@plugin()
class OnlyOnRankZero(Broken):
    @hookimpl
    def on_step_end(self, ctx: Any, model: Any) -> None:
        if ctx.rank == 0:
            with torch.no_grad():
                model.head.bias += 1.0


class BrokenOnTwo(PluginContract):
    two_processes = True

    def make(self) -> object:
        return OnlyOnRankZero()


def test_a_plugin_that_trains_on_one_rank_only_fails_on_two_processes() -> None:
    with pytest.raises(ContractFailure, match=r"the ranks end with different weights"):
        BrokenOnTwo().test_works_on_two_processes()


def test_a_contract_without_make_says_what_to_define() -> None:
    with pytest.raises(NotImplementedError, match=r"define make\(self\)"):
        PluginContract().test_registers()


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
    from hatbus.events import EVENTS

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


def test_reads_count_what_would_wait_for_a_gpu(reads: Reads) -> None:
    value = torch.ones(3)
    for read in (value.sum().item, value.tolist, value.cpu, value.numpy, lambda: value.to("cpu")):
        before = reads.count
        read()
        assert reads.count == before + 1
    before = reads.count
    assert float(value[0]) == 1.0
    value.mul(2).sum()
    assert reads.count == before + 1


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
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
