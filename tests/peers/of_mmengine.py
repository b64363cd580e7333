"""MMEngine: its runner with hooks; none by default where only the loop is measured."""

from __future__ import annotations

import os
import uuid
import warnings
from typing import Any

os.environ.setdefault(
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1"
)  # else it cannot read its checkpoints

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook, EMAHook, Hook, LoggerHook
from mmengine.model import BaseModel
from mmengine.optim import CosineAnnealingLR, OptimWrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from peers.work import BATCH, DECAY, MAX_NORM, SCALE, Watcher, Work, do_nothing

EVENTS = ("before_train_iter", "after_train_iter")
Nothing = type("Nothing", (Hook,), dict.fromkeys(EVENTS, do_nothing))
OFF = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")


class Model(BaseModel):
    """The model as its runner wants it."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.net = work.model
        self.__dict__["work"] = work

    def forward(self, *batch: Any, mode: str = "tensor") -> Any:
        *task, inputs, target = batch
        outs = self.net(inputs, *task)
        loss = self.work.loss(outs, target)
        if mode == "predict":
            return [{"right": (outs.argmax(1) == target).sum(), "loss": loss, "count": len(target)}]
        job = self.work.job
        more = self.work.values(loss.detach(), 0) if not job.metrics else {}
        if job.metrics:
            more["accuracy"] = (outs.argmax(1) == target).float().mean()
        return {"loss": loss, **more}


class Accuracy(BaseMetric):
    """Of a validation."""

    def process(self, _data_batch: Any, data_samples: Any) -> None:
        self.results.extend((s["right"], s["loss"], s["count"]) for s in data_samples)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        right, losses, counts = zip(*results, strict=True)
        total = torch.stack(losses).mean().item()
        return {"accuracy": torch.stack(right).sum().item() / sum(counts), "loss": total}


class ScaledWrapper(OptimWrapper):
    """Scales gradients where its documentation has one change the update."""

    scaled: Any = None

    def step(self, **kwargs: Any) -> None:
        if self.scaled is not None:
            torch._foreach_mul_(self.scaled(), SCALE)
        super().step(**kwargs)


class Watches(Hook):
    """Tells a watcher; keeps its state in the message hub, under a key of its own."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher

    def before_train(self, runner: Runner) -> None:
        kept = runner.message_hub.runtime_info.get(f"watcher_{self.watcher.name}")
        if kept is not None:
            self.watcher.load_state_dict({"count": kept})

    def after_train_iter(self, runner: Runner, **_: Any) -> None:
        self.watcher.step(runner.iter + 1)
        runner.message_hub.update_info(f"watcher_{self.watcher.name}", self.watcher.count)

    def after_run(self, _runner: Runner) -> None:
        self.watcher.over()


class KeepsAccuracy(Hook):
    """Takes what the last validation found."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def after_val_epoch(self, _runner: Runner, metrics: dict[str, float]) -> None:
        self.work.accuracy = metrics["accuracy"]


def train(work: Work) -> None:
    warnings.simplefilter("ignore")
    job, model = work.job, Model(work)
    kind = ScaledWrapper(work.optimizer, clip_grad={"max_norm": MAX_NORM} if job.clip else None)
    kind.scaled = work.first_gradients if job.scale else None
    hooks = [Nothing() for _ in range(job.callbacks)]
    averages = EMAHook(momentum=1 - DECAY) if job.ema else None
    runner = Runner(
        model,
        work_dir=job.folder,
        train_dataloader=loader_of(work),
        val_dataloader=work.validation if job.validate else None,
        val_cfg={} if job.validate else None,
        val_evaluator=Evaluator(Accuracy()) if job.validate else None,
        train_cfg={"by_epoch": False, "max_iters": job.steps, "val_interval": 1},
        optim_wrapper=kind,
        param_scheduler=CosineAnnealingLR(work.optimizer, T_max=job.steps, by_epoch=False)
        if job.lr
        else None,
        default_hooks=default_hooks(work),
        custom_hooks=[*hooks, *([averages] if averages else [])],
        log_processor=log_processor(work),
        visualizer=visualizer(work),
        log_level="CRITICAL",
        resume=job.resume,
        experiment_name=uuid.uuid4().hex,
        randomness={"seed": 1},
    )
    for watcher in work.watchers:  # lower runs later: what must come after another has less
        runner.register_hook(Watches(watcher), "NORMAL" if not watcher.after else "BELOW_NORMAL")
    if job.validate:
        runner.register_hook(KeepsAccuracy(work))
    runner.train()
    if averages is not None:
        work.average = [p.detach() for p in averages.ema_model.module.parameters()]
    if job.metrics:
        values = runner.message_hub.get_scalar("train/accuracy")
        work.accuracy = float(values.mean(job.steps))


def loader_of(work: Work) -> Any:
    """Of a shuffled data set as its documentation has it for training by iteration."""
    if not work.job.shuffled:
        return work.data
    sampler = InfiniteSampler(work.dataset, shuffle=True, seed=1)
    return DataLoader(work.dataset, BATCH[work.job.model], sampler=sampler)


def default_hooks(work: Work) -> dict[str, Any]:
    job, hooks = work.job, dict.fromkeys(OFF)
    if job.scalars or job.metrics:
        hooks["runtime_info"] = {"type": "RuntimeInfoHook"}
    if job.scalars:
        hooks |= {"timer": {"type": "IterTimerHook"}, "logger": LoggerHook(interval=1)}
    if job.lr:
        hooks["param_scheduler"] = {"type": "ParamSchedulerHook"}
    if job.save_every:
        hooks["checkpoint"] = CheckpointHook(job.save_every, by_epoch=False, max_keep_ckpts=2)
        hooks["runtime_info"] = {"type": "RuntimeInfoHook"}
    return hooks


def log_processor(work: Work) -> dict[str, Any]:
    found: dict[str, Any] = {"by_epoch": False}
    if work.job.metrics and work.job.scalars:
        how = {"log_name": "mean_loss", "method_name": "mean", "window_size": "global"}
        found["custom_cfg"] = [{"data_src": "loss", **how}]
    return found


def visualizer(work: Work) -> Any:
    if not work.job.scalars:
        return None
    backend = {"type": "TensorboardVisBackend"}
    return {"type": "Visualizer", "vis_backends": [backend], "name": uuid.uuid4().hex}
