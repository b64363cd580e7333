"""Every first-party plugin that looks at weights or gradients: by DDP and in shards."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.callbacks import (
    Closure,
    EarlyStopping,
    ExponentialMovingAverage,
    FreezeBNStatistics,
    FreezeModule,
    FuseBN,
    GradClip,
    GradMonitor,
    GradScale,
    MeanTeacher,
    NanGuard,
    StatsMonitor,
    Validation,
)
from hatbus.parallel import Parallel, full_tensor

RANK = int(os.environ.get("RANK", "0"))


class Net(nn.Module):
    """A batch norm, and a head of one row: fewer than there are processes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Dropout(0.1), nn.Tanh()
        )
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).mean((2, 3)))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = Net(), Net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.student(x)


class ScheduleFree(torch.optim.SGD):
    """An optimizer of two modes: weights are others in eval mode."""

    moved = 0.0

    def train(self) -> None:
        self._move(-self.moved)

    def eval(self) -> None:
        self._move(0.5 - self.moved)

    @torch.no_grad()
    def _move(self, by: float) -> None:
        self.moved += by
        for one in self.param_groups[0]["params"]:
            if self.state[one]:
                one.add_(self.state[one]["momentum_buffer"], alpha=by)


class Sam(torch.optim.Optimizer):
    """Looks at the loss at two points in a step."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.inner = torch.optim.SGD(self.param_groups, lr=lr)

    @torch.no_grad()
    def step(self, closure: Any) -> None:
        closure()
        every = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        steps = [p.grad * 0.05 for p in every]
        torch._foreach_add_(every, steps)
        closure()
        torch._foreach_sub_(every, steps)
        self.inner.step()


def batches(seed: int = 0) -> list[Any]:
    draw = {"generator": torch.Generator().manual_seed(seed + RANK)}
    return [(torch.randn(4, 1, 6, 6, **draw), torch.randn(4, 1, **draw)) for _ in range(3)]


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def cases() -> dict[str, tuple[list[object], dict[str, Any]]]:
    """Plugins and options of the trainer, made anew."""
    ema, look = ExponentialMovingAverage, Validation(batches(9))
    return {
        "ema": ([ema(), look], {}),
        "ema, buffers averaged": ([ema(buffers="average"), look], {}),
        "ema, late, buffers copied": ([ema(start_step=2, buffers="copy"), look], {}),
        "mean_teacher": ([MeanTeacher()], {"model": Pair}),
        "mean_teacher, own start": ([MeanTeacher(copy_student=False)], {"model": Pair}),
        "nan_guard": ([NanGuard()], {}),
        "grad_monitor": ([GradMonitor(log_freq=1)], {}),
        "grad_clip": ([GradClip(0.1, log_interval=1)], {}),
        "grad_clip, inf": ([GradClip(0.1, norm_type="inf", log_interval=1)], {}),
        "grad_clip, value": ([GradClip(max_value=0.01)], {}),
        "grad_scale": ([GradScale([("stem", 0.3)])], {"accumulate": 3}),
        "freeze_module": ([FreezeModule([["stem"]], [1], "step", unfreeze_at=[3])], {}),
        "freeze_bn_statistics": ([FreezeBNStatistics()], {}),
        "early_stopping": ([look, EarlyStopping(monitor="val/loss", mode="min")], {}),
        "stats_monitor": ([StatsMonitor()], {}),
        "schedule-free": ([look], {"optimizer": lambda p: ScheduleFree(p, 0.05, momentum=0.9)}),
        "closure": ([Closure(), GradClip(1.0)], {"optimizer": lambda p: Sam(p, 0.05)}),
        "closure, LBFGS": ([Closure()], {"optimizer": torch.optim.LBFGS}),
        "adagrad": ([], {"optimizer": torch.optim.Adagrad}),
        "foreach": ([], {"optimizer": lambda p: torch.optim.AdamW(p, foreach=True)}),
        "bf16": ([], {"precision": "bf16"}),
        "fp16": ([GradClip(0.1)], {"precision": "fp16"}),
        "skip_step": ([], {"nan": "skip_step"}),
        "fuse_bn": ([FuseBN([["stem"]], [1], "step")], {}),
    }


def trained(how: Any, plugins: list[object], options: dict[str, Any]) -> list[float]:
    """Losses, published values and weights of a run."""
    torch.manual_seed(0)
    model = options.pop("model", Net)()
    optimizer = options.pop("optimizer", sgd)(model.parameters())
    found: list[float] = []

    class Notes:
        @hookimpl
        def on_step_end(self, losses: Any) -> None:
            found.append(losses["loss"].item())

        @hookimpl
        def on_log(self, logs: Any) -> None:
            timed = ("time/", "memory", "batch")
            found.extend(float(v) for n, v in logs.items() if not n.startswith(timed))

    loss = nn.functional.mse_loss
    trainer = Trainer(
        model,
        optimizer,
        batches(),
        loss,
        [*plugins, Notes()],
        parallel=how,
        device="cpu",
        timeout=60,
        **options,
    )
    trainer.fit(num_epochs=2)
    return found + [full_tensor(p).double().sum().item() for p in model.parameters()]


def split() -> str:
    """What is said of a model that a plan of tensor parallelism has split."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2,))
    model = parallelize_module(nn.Sequential(nn.Linear(4, 4)), mesh, {"0": ColwiseParallel()})
    try:
        Trainer(model, sgd(model.parameters()), batches(), nn.functional.mse_loss)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(path: str) -> None:
    torch.set_num_threads(1)
    said: dict[str, Any] = {}
    for name in cases():
        for way, how in (("ddp", "ddp"), ("shards", Parallel("fsdp2", blocks=["Sequential"]))):
            try:
                said[f"{name}: {way}"] = trained(how, *cases()[name])
            except Exception as error:
                said[f"{name}: {way}"] = f"{type(error).__name__}: {error}"
    said["split"] = split()  # inside the group that the shards are in
    Path(f"{path}-{RANK}.json").write_text(json.dumps(said), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
