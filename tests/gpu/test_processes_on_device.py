"""Processes that torchrun started on the device: NCCL's calls, DDP, and one process alone."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from gpu.on_device import DEVICE

BACKEND = "nccl" if DEVICE == "cuda" else "gloo"

SCRIPT = """
import sys
import torch
from torch import distributed, nn
from hatbus import Trainer, callbacks
from hatbus.parallel.launch import rank_and_world

folder, device, backend = sys.argv[1:]
rank, world = rank_and_world()
if device == "cuda":
    torch.cuda.set_device(0)
distributed.init_process_group(backend)
torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, inputs, task):
        return getattr(self, task)(self.stem(inputs).mean((2, 3)))


def data(seed):
    chance = torch.Generator().manual_seed(seed)
    images = torch.randn(24, 4, 3, 6, 6, generator=chance)
    return [(x, torch.randint(0, 4, (4,), generator=chance)) for x in images]


def update(metrics, batch, outs):
    metrics[0].update(outs, batch[1])


model = Net()
ema = callbacks.ExponentialMovingAverage(0.9, 2)
plugins = {
    "grad_scale": callbacks.GradScale([("stem", 0.5, "a"), ("b", 2.0)], clip_grad_norm=1.0),
    "fuse_bn": callbacks.FuseBN([["stem"]], [6], "step"),
    "ema": ema,
    "metric": callbacks.MetricUpdater(update, ["accuracy"], step_log_freq=4),
    "checkpoint": callbacks.Checkpoint(folder, save_interval=5, interval_by="step"),
}
trainer = Trainer(
    model,
    torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    {"a": data(rank), "b": data(10 + rank)},
    {"a": nn.functional.cross_entropy, "b": nn.functional.cross_entropy},
    plugins,
    device=device,
    accumulate=2,
)
ctx = trainer.fit(num_steps=10)
assert {p.device.type for p in model.parameters()} == {device}
assert ctx.updates == 10
accuracy = float(ctx.latest["train/accuracy"])
weights = {n: p.detach().cpu() for n, p in model.named_parameters()}
averages = {n: v.cpu() for n, v in ema.averages().items() if n in weights}
found = {"weights": weights, "averages": averages, "accuracy": accuracy}
torch.save(found, f"{folder}/rank-{rank}.pt")
distributed.destroy_process_group()
"""


def torchrun(processes: int, *words: object, folder: Path) -> None:
    """Starts processes in a folder, and waits for them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


def run(folder: Path, processes: int, backend: str) -> list[dict[str, object]]:
    """Runs the script; what each rank found."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    torchrun(processes, script, folder, DEVICE, backend, folder=folder)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(processes)]


def test_one_process_of_torchrun_with_a_group_of_its_own(tmp_path: Path) -> None:
    (found,) = run(tmp_path, 1, BACKEND)
    assert 0 <= found["accuracy"] <= 1
    assert all(bool(value.isfinite().all()) for value in found["weights"].values())


def test_two_processes_on_one_device_end_with_the_same_bits(tmp_path: Path) -> None:
    """Over gloo: NCCL wants a GPU for each process."""
    first, second = run(tmp_path, 2, "gloo")
    assert first["accuracy"] == second["accuracy"]
    for part in ("weights", "averages"):
        assert first[part].keys() == second[part].keys()
        assert all(first[part][name].equal(second[part][name]) for name in first[part])


def test_a_model_sharded_over_one_process_is_averaged_and_shown_as_a_plain_one(
    tmp_path: Path,
) -> None:
    script = Path(__file__).parents[2] / "plugins/hatbus-model/tests/fsdp_run.py"
    found = []
    for how in ("fsdp", "plain"):
        torchrun(1, script, how, tmp_path / "run", DEVICE, folder=tmp_path)
        found.append(torch.load(tmp_path / f"run-{how}-0.pt"))
    sharded, plain = found
    assert (sharded["kind"], plain["kind"]) == ("FSDPNet", "Net")
    assert sharded["looks"] == pytest.approx(plain["looks"], abs=1e-10)
    for part in ("model", "ema"):
        for name, value in plain[part].items():
            torch.testing.assert_close(sharded[part][name], value, rtol=0, atol=1e-10)


@pytest.mark.needs_gpu
def test_torchrun_runs_a_job_on_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        '[run]\nentry = "train.py:build"\nnum_steps = 4\nprecision = "bf16"\n[plugins.checkpoint]\n'
    )
    (tmp_path / "train.py").write_text(
        "import torch\n\n\ndef build():\n"
        "    model = torch.nn.Linear(3, 1)\n"
        "    data = [(torch.randn(4, 3), torch.randn(4, 1))] * 4\n"
        "    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "    return model, optimizer, data, torch.nn.functional.mse_loss\n"
    )
    torchrun(1, "-m", "hatbus", "run", "job.toml", folder=tmp_path)
    assert (tmp_path / "runs").is_dir()
