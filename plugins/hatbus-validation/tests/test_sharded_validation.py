"""A model sharded by FSDP2: ``val_model`` gets its whole weights; what needs a copy is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SHARDED = '''
import json, os, sys
from contextlib import contextmanager
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from hatbus import hookimpl, plugin
from hatbus.errors import JobError
from hatbus.parallel import reshard
from hatbus_validation.validation import Validation
from validated import batches, mean_loss, trainer

torch.set_num_threads(1)
distributed.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def sharded():
    model = net()
    for module in (model[0], model):
        fully_shard(module, mesh=mesh)
    return model


@plugin(stage="average")
class Half:
    """A weight view of shards: half of the raw weights, in place, as a DTensor wants it."""

    @hookimpl
    def on_loop_begin(self, ctx):
        self.model = ctx.model
        ctx.weights.add("ema", self.show)

    @contextmanager
    def show(self):
        self.scale(0.5)
        yield
        self.scale(2.0)

    @torch.no_grad()
    def scale(self, factor):
        reshard(self.model)
        for p in self.model.parameters():
            p.mul_(factor)


def doubled(model):
    for p in model.parameters():
        p.data.mul_(2)


found = {"losses": [], "expected": []}
for options, factor in (({}, 0.5), ({"model_convert_pipeline": [doubled]}, 1.0)):
    data = batches(2)
    validation = Validation(data, val_model=net(), **options)
    run = trainer(Half(), validation, model=sharded())
    run.fit(num_epochs=1)
    found["losses"].append(float(run.ctx.latest["val/loss"]))
    whole = net()
    state = run.ctx.model.state_dict()
    whole.load_state_dict({n: v.full_tensor() * factor for n, v in state.items()})
    found["expected"].append(mean_loss(whole, data))
found["refused"] = []
for options in ({"model_convert_pipeline": [doubled]}, {"inference_mode": True}):
    run = trainer(Validation(batches(1), **options), model=sharded())
    try:
        run.fit(num_epochs=1)
    except JobError as error:
        found["refused"].append([str(error), run.ctx.position.global_step])
with open(f"{sys.argv[1]}/{distributed.get_rank()}.json", "w") as file:
    json.dump(found, file)
distributed.destroy_process_group()
os._exit(0)  # what holds the group still has threads that the interpreter's end may abort
'''


def on_two(script: str, folder: Path) -> list[dict[str, list[float]]]:
    """What each of two processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = str(Path(__file__).parent)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
    }
    words = [sys.executable, "-c", script, str(folder)]
    both = [subprocess.Popen(words, env={**env, "RANK": str(rank)}) for rank in range(2)]
    try:
        assert [process.wait(100) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_a_sharded_model_is_validated_as_a_whole_one_or_refused_before_training(
    tmp_path: Path,
) -> None:
    for found in on_two(SHARDED, tmp_path):
        assert found["losses"] == pytest.approx(found["expected"])
        cannot = "cannot use a sharded model (FSDP2); leave it out"
        assert found["refused"] == [
            [
                f"validation with model_convert_pipeline {cannot}, or give it a whole val_model",
                0,
            ],
            [f"validation with inference_mode {cannot}", 0],
        ]
