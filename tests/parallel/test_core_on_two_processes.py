"""What the core promises of two processes, beyond what the acceptance tests run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import batches, tiny_trainer
from two_processes import run_on_two

PLAYS = """
import json, logging, sys, time
import torch
from hatbus import hookimpl
from tiny import batches, tiny_trainer, weights

torch.set_num_threads(1)
rank, seen = int(sys.argv[1]), {"gradients": [], "saved": []}


class Play:
    replaces = saves = stops = False

    @hookimpl
    def on_batch_begin(self, ctx):
        if self.replaces:
            ctx.batch = tuple(ctx.batch[:1]) + (ctx.batch[1] * 2,)

    @hookimpl
    def on_optimizer_step_begin(self, model):
        seen["gradients"].append(model.weight.grad.flatten().tolist())

    @hookimpl
    def on_epoch_end(self, ctx, epoch_id):
        if self.saves and epoch_id == 1:
            ctx.control.save("the end")

    @hookimpl
    def on_step_end(self, ctx, step_id):
        if self.stops and step_id == 1:
            ctx.control.stop("epoch", "late")

    @hookimpl
    def save_checkpoint(self, reason):
        seen["saved"].append(reason)
        return "path"


play = Play()
trainer = tiny_trainer([play], batches(4, seed=rank), accumulate=2)
play.replaces = True
trainer.fit(num_steps=2)
play.replaces, play.saves = False, True
trainer.fit(num_epochs=2)
play.saves, play.stops = False, True
trainer.fit(num_epochs=4)
seen |= {"epochs": trainer.ctx.position.epoch, "weights": weights(trainer).tolist()}


class Keeps(logging.Handler):
    def emit(self, record):
        seen["said"].append(record.getMessage())


seen["said"] = []
logging.getLogger("hatbus").addHandler(Keeps())
plain = torch.utils.data.DataLoader(batches(8), batch_size=None, shuffle=True)
trainer = tiny_trainer(data=plain)
trainer.fit(num_steps=1)
trainer.fit(num_steps=2)


class EndsBoth:
    @hookimpl
    def on_step_end(self, ctx, epoch_id, step_id):
        if step_id == 1:
            ctx.control.stop("run", "enough")
        if step_id == 2:
            ctx.control.stop("epoch", "enough of it")


trainer = tiny_trainer([EndsBoth()], batches(8, seed=rank))
trainer.fit(num_epochs=3)
seen["ended"] = trainer.ctx.position.global_step


class Ticks:
    def __init__(self):
        self.heard = []

    @hookimpl
    def on_step_end(self, global_step_id):
        self.heard.append(global_step_id)


class Sleeps:
    @hookimpl
    def on_step_begin(self):
        time.sleep(0.002)


clock, ticks = time.monotonic, Ticks()
time.monotonic = lambda: 1000 * rank + (1 + rank) * clock()  # another machine's
trainer = tiny_trainer([Sleeps()], batches(8, seed=rank))
trainer.bus.register(ticks, "ticks", overrides={"every": "0.02 s"})
trainer.fit(num_steps=40)
trainer.fit(num_steps=80)
seen["ticks"] = ticks.heard
with open(f"rank-{rank}.json", "w") as file:
    json.dump(seen, file)
"""

DECIDES = """
import json, os, sys
import torch
from hatbus import hookimpl, plugin
from hatbus.errors import NonFiniteError
from tiny import batches, tiny_trainer, weights

torch.set_num_threads(1)
rank = int(sys.argv[1])
nan = float("nan")


class Decides:
    def __init__(self):
        self.asked, self.grads, self.saved = 0, [], 0

    @hookimpl
    def skip_batch(self, ctx):
        self.asked += 1
        return "dirty here" if ctx.rank == 1 and self.asked == 3 else None

    @hookimpl
    def on_optimizer_step_begin(self, model):
        self.grads.append(model.weight.grad.flatten().tolist())

    @hookimpl
    def veto_checkpoint(self, ctx, reason):
        return "not here" if ctx.rank == 1 and reason == "first" else None

    @hookimpl
    def save_checkpoint(self):
        self.saved += 1
        return "path"

    @hookimpl
    def on_loop_end(self, ctx):
        ctx.save("first")
        ctx.save("second")


class Watches:
    @hookimpl
    def on_step_end(self):
        pass


@plugin(ranks="zero")
class OnRankZero:
    @hookimpl
    def skip_update(self, global_step_id):
        return "rank 0 says so" if global_step_id == 2 else None


def summary(trainer):
    return {"weights": weights(trainer).tolist(), "updates": trainer.ctx.updates}


play = Decides()
trainer = tiny_trainer([play, OnRankZero()], batches(8, seed=rank), accumulate=2)
trainer.bus.register(Watches(), "only_here", overrides={"ranks": "zero"})
trainer.fit(num_epochs=1)
seen = {"skips": {**summary(trainer), "grads": play.grads, "saved": play.saved}}
silent = tiny_trainer(data=batches(2, seed=rank))
silent.fit(num_epochs=1)
seen["asked"] = [name for name in ("skip_batch", "skip_update") if getattr(silent.ctx.emit, name)]

data = batches(4, seed=rank)
if rank == 1:
    data[2] = (data[2][0] * nan, data[2][1])
trainer = tiny_trainer(data=data, nan="skip_step")
trainer.fit(num_epochs=2)
seen["nan"] = summary(trainer)

data = batches(15, seed=rank)
if rank == 1:
    data = [(inputs * nan, target) for inputs, target in data]
trainer = tiny_trainer(data=data, nan="skip_step")
try:
    trainer.fit(num_epochs=1)
except NonFiniteError as error:
    seen["gave up"] = [trainer.ctx.global_step_id, str(error)]
with open(f"rank-{rank}.json", "w") as file:
    json.dump(seen, file)
os._exit(0)  # as `hatbus` itself leaves after an error: the group's threads live on
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> list[dict[str, Any]]:
    """What the two ranks of one run of the plays wrote down."""
    return run_on_two(PLAYS, tmp_path_factory.mktemp("ranks"), checkout)


@pytest.fixture(scope="module")
def deciders(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> list[dict[str, Any]]:
    """What the two ranks wrote down that do not decide alike."""
    return run_on_two(DECIDES, tmp_path_factory.mktemp("deciders"), checkout)


def test_gradients_are_shared_also_when_a_plugin_replaces_the_batch(ranks: Any) -> None:
    first, second = (torch.tensor(seen["gradients"]) for seen in ranks)
    assert len(first) == 8
    assert first.equal(second)


def test_a_second_and_a_third_fit_find_each_other_again(ranks: Any) -> None:
    assert ranks[0]["weights"] == ranks[1]["weights"]


def test_a_request_of_the_last_epochs_end_is_served(ranks: Any) -> None:
    assert [seen["saved"] for seen in ranks] == [["the end"], ["the end"]]


def test_a_loader_that_gives_both_all_its_samples_is_told_of_once(ranks: Any) -> None:
    told = [sum("gives all its samples to each of" in line for line in s["said"]) for s in ranks]
    assert told == [1, 0]


def test_the_end_of_the_run_is_not_taken_back_by_an_end_of_the_epoch(ranks: Any) -> None:
    assert [seen["ended"] for seen in ranks] == [3, 3]


def test_an_interval_in_seconds_is_by_the_first_ranks_clock_on_both(ranks: Any) -> None:
    first, second = (seen["ticks"] for seen in ranks)
    assert first == second
    assert first[0] > 0
    assert len(first) >= 4  # 80 steps of more than 2 ms hold so many intervals of 20


def test_a_stop_of_the_epoch_in_its_last_step_does_not_end_the_run(ranks: Any) -> None:
    assert [seen["epochs"] for seen in ranks] == [4, 4]


def test_a_batch_that_one_rank_skips_is_skipped_by_both(deciders: Any) -> None:
    first, second = (seen["skips"] for seen in deciders)
    assert first["grads"] == second["grads"]
    assert first["weights"] == second["weights"]
    kept = [batches(8, seed=rank)[3] for rank in (0, 1)]  # of step 1: its second micro-batch alone
    before = tiny_trainer(
        data=[pair for n in (0, 1) for pair in (batches(8, seed=r)[n] for r in (0, 1))],
        accumulate=4,
    )
    before.fit(num_epochs=1)
    model = before.ctx.model
    model.zero_grad()
    for inputs, target in kept:
        (torch.nn.functional.mse_loss(model(inputs), target) / 2).backward()
    expected = model.weight.grad.flatten()
    torch.testing.assert_close(torch.tensor(first["grads"][1]), expected)


def test_an_update_that_a_plugin_of_rank_0_skips_is_skipped_by_both(deciders: Any) -> None:
    assert [seen["skips"]["updates"] for seen in deciders] == [3, 3]


def test_a_checkpoint_that_one_rank_vetoes_is_written_by_none(deciders: Any) -> None:
    assert [seen["skips"]["saved"] for seen in deciders] == [1, 1]


def test_a_loss_that_is_bad_on_one_rank_is_skipped_by_both(deciders: Any) -> None:
    first, second = (seen["nan"] for seen in deciders)
    assert first == second
    assert first["updates"] == 6
    assert torch.tensor(first["weights"]).isfinite().all()


def test_ranks_give_up_together_after_too_many_skipped_steps(deciders: Any) -> None:
    (step, text), (other_step, other_text) = (seen["gave up"] for seen in deciders)
    assert step == other_step == 10
    # The loss is the second rank's alone; its gradient reaches both, and each says what it saw.
    assert text.startswith("the gradient of 'weight'")
    assert text.endswith("in step 10, after 10 skipped steps in a row")
    assert other_text == "loss 'loss' is nan in step 10, after 10 skipped steps in a row"


def test_ranks_do_not_wait_for_each_other_where_nobody_decides(deciders: Any) -> None:
    assert [seen["asked"] for seen in deciders] == [[], []]
