"""A host in a run of two processes: who is heard, and who is obeyed."""

from __future__ import annotations

from pathlib import Path

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
