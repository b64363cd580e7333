"""A host in a run of two processes: who is heard, and who is obeyed."""

from __future__ import annotations

from pathlib import Path

import pytest
from host_by_hand import batches, parts
from torch import nn
from two_processes import run_on_two

RUNS = """
import json, sys
import torch
from host_by_hand import HandWritten, run
from torch import distributed

from hatbus import hookimpl, plugin

torch.set_num_threads(1)
distributed.init_process_group("gloo")


@plugin(ranks="zero")
class OfFirst:
    steps = 0

    @hookimpl
    def on_step_end(self):
        self.steps += 1


class Asks:
    @hookimpl
    def on_step_end(self, ctx):
        if ctx.rank == 1 and ctx.global_step_id == 1:
            ctx.control.stop("run", "enough here")


plugins = [OfFirst(), Asks()]
host = HandWritten(plugins)
run(host)
ctx = host.ctx
seen = [ctx.rank, ctx.world_size, plugins[0].steps, ctx.position.global_step]
with open(f"rank-{sys.argv[1]}.json", "w") as file:
    json.dump(seen, file)
distributed.destroy_process_group()
"""


def test_what_one_process_asks_for_both_do_a_step_later_and_the_first_alone_reports(
    tmp_path: Path,
) -> None:
    assert run_on_two(RUNS, tmp_path, Path(__file__).parents[3]) == [[0, 2, 3, 3], [1, 2, 0, 3]]


SHOWS = """
import json, sys
import torch
from host_by_hand import HandWritten, batches, parts
from torch import distributed, nn

from hatbus import hookimpl, plugin
from hatbus.evaluation import mean_losses

torch.set_num_threads(1)
distributed.init_process_group("gloo")


@plugin(ranks="zero")
class Shows:
    def __init__(self):
        self.seen = []

    def wants_mean_losses(self, ctx):
        return ctx.global_step_id != 1

    @hookimpl
    def on_step_end(self, ctx, losses):
        means = {name: one.item() for name, one in mean_losses(ctx).items()}
        self.seen.append([losses["loss"].item(), means])


shows, (model, optimizer) = Shows(), parts()
host = HandWritten([shows])
host.begin(model=model, optimizer=optimizer, num_epochs=1)
mine = batches()[distributed.get_rank() :: 2]
for step in [mine[:1], mine[:1], mine]:
    for x, y in step:
        host.begin_batch((x, y), 1 / len(step))
        host.end_batch({"loss": nn.functional.mse_loss(model(x), y)})
    host.end_step()
host.end()
with open(f"rank-{distributed.get_rank()}.json", "w") as file:
    json.dump(shows.seen, file)
distributed.destroy_process_group()
"""


def test_who_shows_losses_sees_the_mean_over_the_processes_where_it_wants_it(
    tmp_path: Path,
) -> None:
    first, second = run_on_two(SHOWS, tmp_path, Path(__file__).parents[3])
    model, _ = parts()
    of = [nn.functional.mse_loss(model(x), y).item() for x, y in batches()]
    assert [own for own, _ in first] == pytest.approx([of[0], of[0], (of[0] + of[2]) / 2])
    means = [found.get("loss") for _, found in first]
    assert means == [pytest.approx((of[0] + of[1]) / 2), None, pytest.approx(sum(of) / 4)]
    assert second == []  # it is silent there, and the losses took part nevertheless
