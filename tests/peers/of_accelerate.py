"""Accelerate: a loop of one's own over what it has prepared; it has no callbacks."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from peers.work import DECAY, MAX_NORM, SCALE, WIDTHS, Work


def train(work: Work) -> None:  # noqa: C901, PLR0912 - a loop by hand, duty by duty
    warnings.simplefilter("ignore")
    job, loss_of = work.job, work.loss
    place = ProjectConfiguration(
        project_dir=job.folder, automatic_checkpoint_naming=True, total_limit=2
    )
    accelerator = Accelerator(
        cpu=True,
        project_config=place,
        log_with="tensorboard" if job.scalars else None,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=job.shuffled),
    )
    if job.scalars:
        accelerator.init_trackers("tensorboard")
    schedule = torch.optim.lr_scheduler.LambdaLR(work.optimizer, work.rate) if job.lr else None
    model, optimizer, data, schedule = accelerator.prepare(
        work.model, work.optimizer, work.data, schedule
    )
    average = (
        AveragedModel(work.model, multi_avg_fn=get_ema_multi_avg_fn(DECAY)) if job.ema else None
    )
    work.average = [p.detach() for p in average.module.parameters()] if average else None
    accelerator.register_for_checkpointing(*work.watchers, *([average] if average else []))
    metrics = metrics_of(work)
    step, epoch = resumed(accelerator, work) if job.resume else (0, 0)
    for number in range(epoch, work.epochs):
        if job.shuffled:
            data.set_epoch(number)
        skipped = step % len(data) if job.shuffled else 0
        batches = accelerator.skip_first_batches(data, skipped) if skipped else data
        for *task, inputs, target in batches:
            optimizer.zero_grad()
            outs = model(inputs, *task)
            loss = loss_of(outs, target)
            accelerator.backward(loss)
            if job.scale:
                torch._foreach_mul_(work.first_gradients(), SCALE)
            if job.clip:
                accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            if average is not None:
                average.update_parameters(work.model)
            if schedule is not None:
                schedule.step()
            step += 1
            if metrics:
                metrics[0].update(loss.detach())
                metrics[1].update(outs.detach(), target)
            if job.scalars:
                accelerator.log(values(work, metrics, loss, step), step=step)
            for watcher in work.watchers:
                watcher.step(step)
            if job.save_every and step % job.save_every == 0:
                accelerator.project_configuration.iteration = step // job.save_every
                accelerator.save_state()
            if job.validate:
                validate(accelerator, model, work)
            if step == job.steps:
                break
    if metrics:
        work.accuracy = metrics[1].compute().item()
    if job.scalars:
        accelerator.end_training()
    for watcher in work.watchers:
        watcher.over()


def metrics_of(work: Work) -> list[Any]:
    if not work.job.metrics:
        return []
    return [MeanMetric(), MulticlassAccuracy(WIDTHS[work.job.model][-1], average="micro")]


def values(work: Work, metrics: list[Any], loss: torch.Tensor, step: int) -> dict[str, Any]:
    """What is logged: its tracker takes numbers."""
    if not metrics:
        return {name: value.item() for name, value in work.values(loss.detach(), step).items()}
    return {
        "loss": loss.item(),
        "mean_loss": metrics[0].compute().item(),
        "accuracy": metrics[1].compute().item(),
        "lr": work.optimizer.param_groups[0]["lr"],
        "samples": step * len(work.batches[0][1]),
    }


def resumed(accelerator: Accelerator, work: Work) -> tuple[int, int]:
    """The newest state; the step is counted from its folder's name, as its examples do."""
    folders = (work.folder / "checkpoints").glob("checkpoint_*")
    names = [int(path.name.split("_")[1]) for path in folders]
    if not names:
        return 0, 0
    accelerator.load_state()
    step = max(names) * work.job.save_every
    return step, step // (work.job.steps // work.epochs) if work.job.shuffled else 0


def validate(accelerator: Accelerator, model: Any, work: Work) -> None:
    right, count, total = torch.zeros((), dtype=torch.int64), 0, torch.zeros(())
    model.eval()
    for inputs, target in work.validation:
        with torch.no_grad():
            outs = model(inputs)
            total += work.loss(outs, target)
        found, wanted = accelerator.gather_for_metrics((outs.argmax(1), target))
        right += (found == wanted).sum()
        count += len(wanted)
    model.train()
    total.item()
    work.accuracy = right.item() / count
