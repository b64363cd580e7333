"""Two processes: what one asks for, the clock and the place travel with the gradients, where they
can; whatever carries them, all comes out alike, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_messages_per_step import Messages
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from two_processes import run_on_two

from hatbus import Trainer, hookimpl
from hatbus.data import loader
from hatbus.errors import HatbusError
from hatbus.loop import structure_changed
from hatbus.parallel import Parallel
from hatbus.parallel.modes import buffers, riding

RUNS = """
import json, sys
import test_riding as here

with open(f"rank-{sys.argv[1]}.json", "w") as file:
    json.dump(here.all_of_them(int(sys.argv[1])), file)
"""
STEPS = 13
TASKS = ("a", "b")


class Net(nn.Module):
    """Buffers of three types, and one row that no loss uses in a step of task ``"a"``."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.heads = nn.ModuleDict({task: nn.Linear(6, 1) for task in TASKS})
        self.register_buffer("seen", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("odd", torch.zeros(0, 5, dtype=torch.float64))

    def forward(self, x: torch.Tensor, task: str | None = None) -> torch.Tensor:
        self.seen[int(x.detach().sum() > 0)] ^= True
        heads = self.heads.values() if task is None else [self.heads[task]]
        return sum(head(self.norm(self.line(x)).relu()) for head in heads)


class HasHook:
    """Gives DDP a hook of its own."""

    @hookimpl
    def on_loop_begin(self, ctx: Any) -> None:
        ctx.wrapped_model.register_comm_hook(None, default_hooks.allreduce_hook)


class Freezes:
    """Part of the model is not trained from a step on: DDP is made anew."""

    @hookimpl
    def on_step_begin(self, ctx: Any, global_step_id: int) -> None:
        if global_step_id == 4:
            ctx.model.line.requires_grad_(requires_grad=False)
            structure_changed(ctx)
            ctx.control.validate("while DDP is made anew")


class Asks:
    """Rank 1 asks at several places of a step; both note when that is done, and the clock."""

    def __init__(self, rank: int) -> None:
        self.rank, self.rows, self.times = rank, [], []

    @hookimpl
    def on_step_begin(self, ctx: Any, global_step_id: int) -> None:
        if self.rank == 1 and global_step_id == 2:
            ctx.control.validate("before the forward")

    @hookimpl
    def on_batch_end(self, ctx: Any, global_step_id: int) -> None:
        if self.rank == 1 and global_step_id == 5:
            ctx.control.save("after the backward")

    @hookimpl
    def on_step_end(self, ctx: Any, losses: Any) -> None:
        self.rows.append([ctx.epoch_id, ctx.global_step_id, *(x.item() for x in losses.values())])
        self.times.append(ctx.control.now())
        if self.rank == 1 and ctx.global_step_id == 7:
            ctx.control.stop("epoch", "enough")

    @hookimpl(wrapper=True)
    def validate(self, ctx: Any) -> Any:
        self.rows.append(["validate", ctx.global_step_id])
        yield
        return True

    @hookimpl(wrapper=True)
    def save_checkpoint(self, ctx: Any) -> Any:
        self.rows.append(["save", ctx.global_step_id])
        yield
        return True


CASES: dict[str, dict[str, Any]] = {
    "usual": {},
    "accumulate": {"accumulate": 2},
    "views": {"parallel": Parallel(bucket_views=True)},
    "static": {"parallel": Parallel(static_graph=True)},
    "unused": {"parallel": Parallel(find_unused=True)},
    "tasks": {"tasks": True},
    "double": {"dtype": torch.float64},
    "made anew": {"more": [Freezes]},
    "no buffers": {"model": lambda: nn.Linear(4, 1)},
    "has a hook": {"more": [HasHook]},
    "16 bits": {"dtype": torch.bfloat16},
}
ALONE = ("has a hook", "16 bits")
"""Whose gradients carry nothing."""


def run(rank: int, case: str, *, counts: bool) -> dict[str, Any]:
    """What one case comes to; a message that is on its way breaks a profile that ends meanwhile."""
    options = dict(CASES[case])
    torch.manual_seed(0)
    dtype, more = options.pop("dtype", torch.float32), options.pop("more", [])
    model = options.pop("model", Net)().to(dtype)
    x = torch.randn(160, 4, generator=torch.Generator().manual_seed(5)).to(dtype)
    data: Any = loader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), 2)
    if options.pop("tasks", False):
        data = dict.fromkeys(TASKS, data)
    asks, messages = Asks(rank), Messages(10, 12)
    plugins = [asks, *[messages] * counts, *(one() for one in more)]
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    options |= {"device": "cpu", "log_every": 0}
    trainer = Trainer(model, optimizer, data, nn.functional.mse_loss, plugins, **options)
    trainer.fit(num_steps=STEPS)
    with torch.no_grad():
        numbers = [p.double().flatten() for p in (*model.parameters(), *model.buffers())]
    weights = torch.cat(numbers).tolist()
    found = {"rows": asks.rows, "times": asks.times, "weights": weights}
    return {**found, "messages": dict(messages.found)}


class Ahead:
    """Rank 1 believes that it has made a step more."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    @hookimpl
    def on_step_begin(self, ctx: Any, global_step_id: int) -> None:
        if self.rank == 1 and global_step_id == 3:
            ctx.position.global_step += 1


def elsewhere(rank: int) -> str:
    model = nn.Linear(4, 1)
    data = [(torch.ones(2, 4), torch.ones(2, 1))] * 8
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    trainer = Trainer(model, optimizer, data, nn.functional.mse_loss, [Ahead(rank)], log_every=0)
    try:
        trainer.fit(num_epochs=1)
    except HatbusError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def all_of_them(rank: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{Path.cwd()}/group", rank=rank, world_size=2)
    found: dict[str, Any] = {case: run(rank, case, counts=case not in ALONE) for case in CASES}
    most, riding.MOST_BYTES = riding.MOST_BYTES, 0
    send, buffers.Buffers.__call__ = buffers.Buffers.__call__, by_ddp
    found["by messages"] = {case: run(rank, case, counts=False) for case in CASES}
    riding.MOST_BYTES, buffers.Buffers.__call__ = most, send
    return {**found, "elsewhere": elsewhere(rank)}


def by_ddp(self: buffers.Buffers, _state: object, _named: Any) -> None:
    """As DDP sends buffers itself."""
    self._plainly(authoritative_rank=0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> list[dict[str, Any]]:
    """What both processes saw."""
    return run_on_two(RUNS, tmp_path_factory.mktemp("riding"), checkout)


@pytest.mark.parametrize("case", CASES)
def test_whatever_carries_it_the_same_is_done_in_the_same_step(ranks: Any, case: str) -> None:
    for seen in ranks:
        for part in ("rows", "weights"):
            assert seen[case][part] == seen["by messages"][case][part]
    done = [[row for row in seen[case]["rows"] if isinstance(row[0], str)] for seen in ranks]
    again = [["validate", 5]] if case == "made anew" else []
    assert done[0] == done[1] == [["validate", 3], *again, ["save", 6]]
    epochs = [row[:2] for row in ranks[0][case]["rows"] if not isinstance(row[0], str)]
    assert [0, 8] in epochs
    assert [1, 9] in epochs


@pytest.mark.parametrize("case", sorted(CASES.keys() - set(ALONE)))
def test_in_two_steps_only_gradients_and_buffers_are_sent_where_gradients_carry_the_rest(
    ranks: Any, case: str
) -> None:
    used = 2 * (case in ("unused", "tasks"))  # which parameters got gradients
    buffers = {} if case == "no buffers" else {"gloo:broadcast": 2}
    for seen in ranks:
        assert seen[case]["messages"] == {"gloo:all_reduce": 2 + used, **buffers}


@pytest.mark.parametrize("case", CASES)
def test_all_have_the_first_ones_clock(ranks: Any, case: str) -> None:
    one, other = (seen[case]["times"] for seen in ranks)
    assert one == other == sorted(one)
    assert one[0] < one[-1] < one[0] + 60


def test_a_process_in_another_step_is_noticed_by_what_travels_with_the_gradients(
    ranks: Any,
) -> None:
    assert "rank 1 is" in ranks[0]["elsewhere"]
    assert "after 5 steps" in ranks[0]["elsewhere"]
    assert "rank 1 is" in ranks[1]["elsewhere"]
