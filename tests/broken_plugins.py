"""Plugins, each broken in one way, and the clause of the contract that says so."""

from __future__ import annotations

import io
import random
import sys
import threading
from collections.abc import Generator
from typing import Any

import pytest
import torch

from hatbus import hookimpl, plugin


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


@plugin()
class NamesNoKey(Broken):
    rank_state = ("a", "sums")

    def state_dict(self) -> dict[str, Any]:
        return {"a": 1}

    def load_state_dict(self, state: Any) -> None:
        """Takes nothing."""


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
    (NamesNoKey, "state_round_trip", r"names 'sums' in rank_state; .* no such key", {}),
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
