"""hatbus.testing's contract: good plugins keep it, a broken one fails the clause that names it."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_plugins import FAULTS, Broken, LeavesAThread, PatchesTheLoss
from tiny import MeanLoss

from hatbus import hookimpl, plugin
from hatbus.errors import PluginError
from hatbus.testing import ContractFailure, PluginContract
from hatbus.testing.two_processes import run_both

pytest_plugins = ["hatbus.testing"]
torch.set_num_threads(1)


def contract(make: Callable[[], object], **said: Any) -> PluginContract:
    """A contract of a plugin, without a file of its own."""
    return type("TestBroken", (PluginContract,), {"make": lambda self: make(), **said})()


class TestMeanLoss(PluginContract):
    observer = True
    two_processes = True
    most_us_per_step = 100_000.0

    def make(self) -> object:
        return MeanLoss()


@plugin(stage="monitor")
class Above:
    """Publishes in how many steps the loss was above a limit."""

    def __init__(self, limit: float, *, tells_apart: bool) -> None:
        self.limit, self.tells_apart, self.count = limit, tells_apart, 0

    @hookimpl
    def on_step_end(self, ctx: Any, losses: dict[str, torch.Tensor]) -> None:
        self.count += 1 if self.limit < 0 else 2
        prefix = ctx.bus.log_prefix(self) if self.tells_apart else ""
        ctx.log({f"{prefix}above": self.count})


@pytest.mark.parametrize("tells_apart", [False, True])
def test_two_instances_that_publish_one_name_are_told_how_to_tell_them_apart(
    tells_apart: bool,
) -> None:
    def above(limit: float) -> Above:
        return Above(limit, tells_apart=tells_apart)

    kit = contract(lambda: above(-1), make_another=lambda self: above(1))
    if tells_apart:
        kit.test_two_instances_do_not_collide()
        return
    said = r"two instances publish unlike values as 'above', .* ctx\.bus\.log_prefix\(self\)"
    with pytest.raises(ContractFailure, match=said):
        kit.test_two_instances_do_not_collide()


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


class TestSpikeWatch(PluginContract):
    """The stranger's plugin of tests/thirdparty, which keeps a time in its state."""

    observer = True
    reads_every = 1
    volatile = ("watch/update_seconds", "update_seconds")

    def make(self) -> object:
        file = Path(__file__).parents[1] / "thirdparty/hat-stand/src/hat_stand/spike_watch.py"
        return runpy.run_path(str(file))["SpikeWatch"](factor=1000.0)


class TestHalve(PluginContract):
    def make(self) -> object:
        return Halve()


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


@plugin()
class FailsOnRankOne(Broken):
    @hookimpl
    def on_epoch_end(self, ctx: Any) -> None:
        if ctx.rank == 1:
            raise ValueError("the second of two")


class ContractOfOnlyOnRankZero(PluginContract):
    def make(self) -> object:
        return OnlyOnRankZero()


class ContractOfFailsOnRankOne(PluginContract):
    two_processes = True

    def make(self) -> object:
        return FailsOnRankOne()


def test_a_plugin_that_trains_on_one_rank_only_is_found_among_others(tmp_path: Path) -> None:
    found = run_both(tmp_path, TestHalve, ContractOfOnlyOnRankZero)
    assert found.startswith("the ranks end with different weights: weights['")
    assert found.endswith("(of ContractOfOnlyOnRankZero)")


def test_a_plugin_that_fails_on_two_processes_fails_with_its_own_words() -> None:
    with pytest.raises(ContractFailure, match=r"on two processes .*rank 1 ended with 1: ValueErr"):
        ContractOfFailsOnRankOne().test_works_on_two_processes()


def test_a_contract_without_make_says_what_to_define() -> None:
    with pytest.raises(NotImplementedError, match=r"define make\(self\)"):
        PluginContract().test_registers()


def test_a_plugin_that_reads_in_other_steps_is_told_which_are_meant() -> None:
    class ReadsTheFirst(MeanLoss):
        @hookimpl
        def on_step_end(self, losses: dict[str, torch.Tensor], global_step_id: int) -> None:
            if global_step_id % 5 == 0:
                self.last = losses["loss"].item()

    kit = contract(ReadsTheFirst, reads_every=5)
    with pytest.raises(ContractFailure, match=r"reads_every = 5: in steps 4, 9, \.\.\."):
        kit.test_reads_no_values_between_intervals()
