"""What the core promises of two processes, beyond what the acceptance tests run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PLAYS = """
import json, sys
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
with open(f"rank-{rank}.json", "w") as file:
    json.dump(seen, file)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> list[dict[str, Any]]:
    """What the two ranks of one run of the plays wrote down."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "plays.py").write_text(PLAYS)
    paths = os.pathsep.join([str(checkout), str(checkout / "tests")])
    store = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    env = {**os.environ, **store, "PYTHONPATH": paths}
    running = [
        subprocess.Popen(
            [sys.executable, "plays.py", str(rank)], cwd=folder, env={**env, "RANK": str(rank)}
        )
        for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=120) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def test_gradients_are_shared_also_when_a_plugin_replaces_the_batch(ranks: Any) -> None:
    first, second = (torch.tensor(seen["gradients"]) for seen in ranks)
    assert len(first) == 8
    assert first.equal(second)


def test_a_second_and_a_third_fit_find_each_other_again(ranks: Any) -> None:
    assert ranks[0]["weights"] == ranks[1]["weights"]


def test_a_request_of_the_last_epochs_end_is_served(ranks: Any) -> None:
    assert [seen["saved"] for seen in ranks] == [["the end"], ["the end"]]


def test_a_stop_of_the_epoch_in_its_last_step_does_not_end_the_run(ranks: Any) -> None:
    assert [seen["epochs"] for seen in ranks] == [4, 4]
