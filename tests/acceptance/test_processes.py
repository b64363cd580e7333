"""The same job on two processes, started by torchrun."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from stranger import install

from hatbus.runs import run_folder

PROBE = """
    import json
    from hatbus import hookimpl, plugin

    @plugin(stage="report")
    class Probe:
        '''Writes down gradients, and stops or fails on one rank.'''

        def __init__(self, stop_at: int = -1, fail_at: int = -1, rank: int = 1, name: str = "rank"):
            self.stop_at, self.fail_at, self.rank, self.name = stop_at, fail_at, rank, name
            self.grads, self.steps = [], []

        @hookimpl
        def on_optimizer_step_begin(self, model):
            grads = [g.tolist() for g in (p.grad.flatten() for p in model.parameters())]
            self.grads.append(sum(grads, []))

        @hookimpl
        def on_step_end(self, ctx, global_step_id):
            self.steps.append(global_step_id)
            if ctx.rank == self.rank and global_step_id == self.stop_at:
                ctx.control.stop("run", "this rank has seen enough")
            if ctx.rank == self.rank and global_step_id == self.fail_at:
                raise RuntimeError("a bug on one rank")

        @hookimpl
        def on_loop_end(self, ctx):
            seen = {"grads": self.grads, "steps": self.steps, "failed": ctx.exception is not None}
            with open(f"{self.name}-{ctx.rank}.json", "w") as file:
                json.dump(seen, file)
"""
TRAIN = """
import torch
from torch.utils.data import TensorDataset
from hatbus.data.loaders import loader


def build(batch_size: int = 8):
    chance = torch.Generator().manual_seed(3)
    inputs = torch.randn(40, 6, generator=chance)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05),
        "data": loader(TensorDataset(inputs, inputs.sin().sum(1, keepdim=True)), batch_size),
        "loss": torch.nn.functional.mse_loss,
    }
"""
JOB = """
[run]
entry = "train.py:build"
num_epochs = 3
accumulate = 2
[plugins.probe]
"""


@pytest.fixture
def job(outside) -> Path:
    """A small job with the probe."""
    install(outside.site, "acme-probe", {"probe": "acme_probe:Probe"}, {"acme_probe.py": PROBE})
    (outside.cwd / "train.py").write_text(TRAIN)
    found = outside.cwd / "job.toml"
    found.write_text(JOB)
    return found


def seen(outside, name: str) -> dict:
    """What the probe wrote down on one rank."""
    return json.loads((outside.cwd / f"{name}.json").read_text())


@pytest.mark.timeout(300)
def test_two_processes_learn_the_digits_as_one_and_write_everything_once(outside, checkout) -> None:
    outside.seconds = 240
    job = checkout / "docs/examples/digits/job.toml"
    done = outside.torchrun("run", job, "-p", "jsonl_log")
    assert done.code == 0, done.err
    assert done.out.count("after 184 steps") == 1
    assert done.out.count("files: runs/digits/2") == 1
    assert done.err.count("epoch 8/8 begins") == 1
    assert "rank 1" not in done.err
    assert "Warning" not in done.err
    assert "Traceback" not in done.err
    run = run_folder(outside.cwd / "runs" / "digits")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rates = [row["step"] for row in rows if "lr/0" in row]
    assert len(rates) == len(set(rates))
    found = sorted(path.name for path in run.iterdir() if path.is_file())
    assert found == [
        ".lock",
        "history.jsonl",
        "job.json",
        "log.jsonl",
        "plan.json",
        "run.json",
        "run.log",
    ]
    assert len(list(run.rglob("checkpoint-last.json"))) == 1

    single = outside.hatbus("run", job, "-o", "run.run_dir=single", "-p", "no:checkpoint")
    assert single.code == 0, single.err
    assert done.metrics["val/accuracy"] >= 0.97
    assert done.metrics["val/accuracy"] == pytest.approx(single.metrics["val/accuracy"], abs=0.01)


@pytest.mark.timeout(240)
def test_accumulated_gradients_are_those_of_one_process_with_the_same_global_batch(
    outside, job
) -> None:
    two = outside.torchrun("run", job, "-o", "run.args.batch_size=4")
    assert two.code == 0, two.err
    one = outside.hatbus("run", job, "-o", "run.args.batch_size=8", "-o", "probe.name=single")
    assert one.code == 0, one.err
    first, second, single = (seen(outside, n)["grads"] for n in ("rank-0", "rank-1", "single-0"))
    assert len(single) == 9  # 5 batches are groups of 2, 2 and 1, in each of 3 epochs
    assert first == second
    torch.testing.assert_close(torch.tensor(first), torch.tensor(single))
    norms = torch.tensor(single).norm(dim=1)
    assert norms.min() > 1e-3


@pytest.mark.timeout(300)
def test_a_run_goes_on_with_other_numbers_of_processes_on_the_same_global_batches(
    outside, job
) -> None:
    job.write_text(JOB.replace("num_epochs = 3", "num_steps = 9") + "[plugins.checkpoint]\n")
    parts = (outside.torchrun, 4, 4), (outside.hatbus, 7, 8), (outside.torchrun, 9, 4)
    grads, said = [], []
    for start, steps, batch_size in parts:
        options = {"resume": "auto", "name": "out", "num_steps": steps}
        given = [o for k, v in options.items() for o in ("-o", f"run.{k}={v}")]
        done = start("run", job, *given, "-o", f"run.args.batch_size={batch_size}")
        assert done.code == 0, done.err
        grads += seen(outside, "rank-0")["grads"]
        said += [
            line for line in done.err.splitlines() if "the global batches are the same" in line
        ]
    assert [line.split(";")[0] for line in said] == ["processes: 2 -> 1", "processes: 1 -> 2"]
    whole = outside.hatbus("run", job, "-o", "probe.name=whole", "-o", "run.run_dir=whole")
    assert whole.code == 0, whole.err
    expected = seen(outside, "whole-0")["grads"]
    assert len(expected) == 9
    torch.testing.assert_close(torch.tensor(grads), torch.tensor(expected))

    other = outside.torchrun("run", job, "-o", "run.resume=auto", "-o", "run.name=out")
    assert other.code != 0
    assert "data.global_batch_size: 8 -> 16" in other.err


@pytest.mark.timeout(240)
def test_both_processes_share_one_folder_and_are_refused_one_that_is_taken(outside, job) -> None:
    place = ("-o", "run.run_dir=place")
    job.write_text(JOB.replace("num_epochs = 3", "num_steps = 3"))
    assert outside.torchrun("run", job, *place).code == 0
    (folder,) = (path for path in (outside.cwd / "place").iterdir() if path.is_dir())
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"
    named = (*place, "-o", f"run.name={folder.name}")
    refused = outside.torchrun("run", job, *named)
    line = f"hatbus: error: [rank 0] there is a run in 'place/{folder.name}' already; go on with"
    assert sum(one.startswith(line) for one in refused.err.splitlines()) >= 1
    assert refused.code != 0
    assert "after 3 steps" not in refused.out


@pytest.mark.timeout(240)
def test_a_stop_that_one_rank_asks_for_stops_both_after_the_same_step(outside, job) -> None:
    done = outside.torchrun("run", job, "-o", "probe.stop_at=3")
    assert done.code == 0, done.err
    first, second = (seen(outside, name)["steps"] for name in ("rank-0", "rank-1"))
    assert first == second
    assert 3 < len(first) < 9
    assert "stop run: asked for by" in done.err
    assert f"after {len(first)} steps" in done.out


@pytest.mark.timeout(240)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_bug_on_one_rank_ends_both_soon_and_is_named(outside, job, rank: int) -> None:
    began = time.monotonic()
    options = ("-o", "probe.fail_at=4", "-o", f"probe.rank={rank}")
    done = outside.torchrun("run", job, *options)
    assert time.monotonic() - began < 100
    assert done.code != 0
    named = "plugin 'probe' (acme-probe 1.0), on_step_end, step 4 failed with RuntimeError: a bug"
    assert named in done.err
    assert seen(outside, f"rank-{rank}")["failed"]
    assert "after 9 steps" not in done.out
