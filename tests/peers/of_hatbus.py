"""hatbus: the trainer and its own plugins."""

from __future__ import annotations

from typing import Any

from hatbus import Trainer, hookimpl
from hatbus.data import OneTask
from peers.work import DECAY, MAX_NORM, SCALE, TASKS, Batches, Watcher, Work

EVENTS = (
    "on_step_begin",
    "on_batch_begin",
    "on_forward_begin",
    "on_forward_end",
    "on_backward_begin",
    "on_backward_end",
    "on_batch_end",
    "on_optimizer_step_begin",
    "on_optimizer_step_end",
    "on_step_end",
)


class Nothing:
    """Hears every event of a step and does nothing."""


for _event in EVENTS:
    _names: dict[str, Any] = {}
    exec(f"def {_event}(self): pass", _names)
    setattr(Nothing, _event, hookimpl(_names[_event]))


class Watches:
    """Tells a watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.state_dict, self.load_state_dict = watcher.state_dict, watcher.load_state_dict

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        self.watcher.step(ctx.position.global_step)

    @hookimpl
    def on_loop_end(self) -> None:
        self.watcher.over()


class Scalars:
    """Publishes as many values as are wanted."""

    def __init__(self, work: Work) -> None:
        self.work, self.samples = work, 0

    @hookimpl
    def on_batch_end(self, ctx: Any, losses: Any, batch: Any) -> None:
        if self.work.job.metrics:
            self.samples += len(batch[1])
            ctx.log({"samples": self.samples})
        else:
            ctx.log(self.work.values(losses["loss"], ctx.global_step_id))


def train(work: Work) -> None:
    job = work.job
    plugins = {f"nothing_{n}": Nothing() for n in range(job.callbacks)} | plugins_of(work)
    trainer = Trainer(
        work.model,
        work.optimizer,
        data_of(work),
        dict.fromkeys(TASKS[: job.tasks], work.loss) if job.tasks > 1 else work.loss,
        plugins,
        task_sampler=OneTask() if job.tasks > 1 else None,
        seed=1,
    )
    for watcher in work.watchers:
        order = {"after": [watcher.after]} if watcher.after else {}
        trainer.bus.register(Watches(watcher), watcher.name, overrides=order)
    trainer.fit(num_steps=job.steps)
    if job.ema:
        with trainer.ctx.weights.showing("ema"):
            work.average = [p.detach().clone() for p in work.model.parameters()]
    if job.metrics:
        work.accuracy = float(trainer.ctx.latest["train/accuracy"])
    if job.validate:
        work.accuracy = float(trainer.ctx.latest["val/accuracy"])


def data_of(work: Work) -> Any:
    """A loader for each task."""
    if work.job.tasks == 1:
        return work.data
    share = work.job.steps // work.job.tasks
    noted = (work.times, work.worked, work.pause)
    return {
        task: Batches(work.batches[n :: work.job.tasks], share, *noted)
        for n, task in enumerate(TASKS[: work.job.tasks])
    }


def plugins_of(work: Work) -> dict[str, Any]:
    from hatbus import callbacks as given

    job, plugins = work.job, {}
    if job.ema:
        plugins["ema"] = given.ExponentialMovingAverage(DECAY, decay_base=0)
    if job.clip:
        plugins["grad_clip"] = given.GradClip(MAX_NORM)
    if job.scale:
        plugins["grad_scale"] = given.GradScale([(work.model.first_layer, SCALE)])
    if job.lr:
        plugins["cos_lr"] = given.CosLrUpdater()
    if job.metrics:
        often = 1 if job.scalars else 0
        plugins["metrics"] = given.MetricUpdater(metrics=["loss", "accuracy"], step_log_freq=often)
    if job.scalars:
        plugins["scalars"] = Scalars(work)
        plugins["tensorboard"] = given.TensorBoard(str(work.folder / "tensorboard"), describe=False)
    if job.validate:
        watch = [given.MetricUpdater(metrics=["accuracy"], step_log_freq=0)]
        plugins["validation"] = given.Validation(
            work.validation, callbacks=watch, val_interval=1, interval_by="step", log_interval=None
        )
    if job.save_every:
        plugins["checkpoint"] = given.Checkpoint(
            str(work.folder / "checkpoints"),
            save_interval=job.save_every,
            interval_by="step",
            save_on_train_end=False,
            keep_last=2,
            resume="auto" if job.resume else None,
            async_save=job.in_background,
        )
    return plugins
