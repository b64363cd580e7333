"""PyTorch-Ignite: an engine with handlers, as its guide and its handlers' pages write them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.engine.deterministic import DeterministicEngine
from ignite.handlers import Checkpoint, DiskSaver, EMAHandler, LRScheduler, TensorboardLogger
from ignite.metrics import Accuracy, Loss

from peers.work import DECAY, MAX_NORM, SCALE, Watcher, Work, do_nothing, newest

EVENTS = (
    Events.GET_BATCH_STARTED,
    Events.GET_BATCH_COMPLETED,
    Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED,
)


def train(work: Work) -> None:  # noqa: C901, PLR0912 - what is attached, duty by duty
    warnings.simplefilter("ignore")
    job = work.job
    kind = DeterministicEngine if job.shuffled else Engine  # what its pages say of exact resume
    engine = kind(update_of(work))
    for event in EVENTS:
        for _ in range(job.callbacks):
            engine.add_event_handler(event, do_nothing)
    kept: dict[str, Any] = {"trainer": engine, "model": work.model, "optimizer": work.optimizer}
    if job.ema:
        average = EMAHandler(work.model, momentum=1 - DECAY)
        average.attach(engine, event=Events.ITERATION_COMPLETED)
        work.average = [p.detach() for p in average.ema_model.parameters()]
        kept["ema_model"] = average.ema_model
    if job.lr:
        schedule = LRScheduler(torch.optim.lr_scheduler.LambdaLR(work.optimizer, work.rate))
        engine.add_event_handler(Events.ITERATION_STARTED, schedule)
        kept["lr_scheduler"] = schedule
    if job.metrics:
        Accuracy(output_transform=lambda o: (o["outs"], o["target"])).attach(engine, "accuracy")
        Loss(work.loss, output_transform=lambda o: (o["outs"], o["target"])).attach(engine, "loss")
    logger = log(engine, work) if job.scalars else None
    if job.validate:
        validate(engine, work)
    for watcher in work.watchers:
        watch(engine, watcher)
        kept[watcher.name] = watcher
    if job.save_every:
        saver = DiskSaver(str(work.folder / "checkpoints"), require_empty=False)
        handler = Checkpoint(kept, saver, n_saved=2)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=job.save_every), handler)
    if job.resume:
        found = newest(work.folder / "checkpoints", "checkpoint_*.pt")
        if found is not None:
            Checkpoint.load_objects(kept, torch.load(found, weights_only=False))
    data = work.data
    engine.run(data, max_epochs=work.epochs, epoch_length=len(data))
    if job.metrics:
        work.accuracy = engine.state.metrics["accuracy"]
    if logger is not None:
        logger.close()


def update_of(work: Work) -> Any:
    """The function that every engine is made of."""
    job, model, optimizer, loss_of = work.job, work.model, work.optimizer, work.loss

    def update(_engine: Engine, batch: Any) -> Any:
        model.train()
        optimizer.zero_grad()
        *task, inputs, target = batch
        outs = model(inputs, *task)
        loss = loss_of(outs, target)
        loss.backward()
        if job.scale:
            torch._foreach_mul_(work.first_gradients(), SCALE)
        if job.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        return {"loss": loss.detach(), "outs": outs.detach(), "target": target}

    return update


def log(engine: Engine, work: Work) -> TensorboardLogger:
    """Scalars of every iteration; running metrics are computed for it."""
    logger = TensorboardLogger(log_dir=str(work.folder / "tensorboard"))
    rate = work.optimizer.param_groups[0]

    def values(output: Any) -> dict[str, Any]:
        return work.values(output["loss"], engine.state.iteration)

    def of_metrics(_output: Any) -> dict[str, Any]:
        return dict(engine.state.metrics) | {"lr": rate["lr"], "samples": samples(engine, work)}

    transform = of_metrics if work.job.metrics else values
    if work.job.metrics:
        running(engine)
    logger.attach_output_handler(
        engine,
        event_name=Events.ITERATION_COMPLETED,
        tag="training",
        output_transform=transform,
    )
    return logger


def running(engine: Engine) -> None:
    """The loss of the batch, and means over the last batches, as its examples have them."""
    from ignite.metrics import RunningAverage

    RunningAverage(output_transform=lambda o: o["loss"]).attach(engine, "running_loss")
    right = RunningAverage(output_transform=share_right)
    right.attach(engine, "running_accuracy")
    engine.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda e: e.state.metrics.__setitem__("batch_loss", e.state.output["loss"]),
    )


def share_right(output: Any) -> torch.Tensor:
    return (output["outs"].argmax(1) == output["target"]).float().mean()


def samples(engine: Engine, work: Work) -> int:
    return engine.state.iteration * len(work.batches[0][1])


def validate(engine: Engine, work: Work) -> None:
    metrics = {"accuracy": Accuracy(), "loss": Loss(work.loss)}
    evaluator = create_supervised_evaluator(work.model, metrics=metrics)

    @engine.on(Events.ITERATION_COMPLETED)
    def run() -> None:
        state = evaluator.run(work.validation)
        work.accuracy = state.metrics["accuracy"]


def watch(engine: Engine, watcher: Watcher) -> None:
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: watcher.step(e.state.iteration))
    engine.add_event_handler(Events.COMPLETED, watcher.over)

    @engine.on(Events.EXCEPTION_RAISED)
    def failed(_engine: Engine, error: BaseException) -> None:
        watcher.over()
        raise error  # as its page says: else the error is swallowed
