"""By hand: the loop that everybody writes, and its duties by the quickest known means."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from peers.work import DECAY, MAX_NORM, SCALE, Work, do_nothing, newest

PLACES = 10
"""Of a step, in which a callback is called."""


def train(work: Work) -> None:  # noqa: C901, PLR0912 - a loop by hand, duty by duty
    job, model, optimizer, loss_of = work.job, work.model, work.optimizer, work.loss
    parameters = [p.detach() for p in model.parameters()]
    work.average = [p.clone() for p in parameters] if job.ema else None
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, work.rate) if job.lr else None
    writer = writer_of(work) if job.scalars else None
    total, right, count = torch.zeros(()), torch.zeros((), dtype=torch.int64), 0
    step = load(work, schedule) if job.resume else 0
    calls = [do_nothing] * (PLACES * job.callbacks)
    for *task, inputs, target in work.data:
        optimizer.zero_grad()
        outs = model(inputs, *task)
        loss = loss_of(outs, target)
        loss.backward()
        if job.scale:
            torch._foreach_mul_(work.first_gradients(), SCALE)
        if job.clip:
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM, foreach=True)
        optimizer.step()
        if work.average is not None:
            torch._foreach_lerp_(work.average, parameters, 1 - DECAY)
        if schedule is not None:
            schedule.step()
        if job.metrics:
            total += loss.detach()
            right += (outs.argmax(1) == target).sum()
            count += len(target)
        step += 1
        for call in calls:
            call()
        if writer is not None:
            values = work.values(loss.detach(), step)
            if job.metrics:
                rate = optimizer.param_groups[0]["lr"]
                named = (loss.detach(), total / step, right / count, rate, count)
                values = dict(zip(values, named, strict=True))
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        if job.save_every and step % job.save_every == 0:
            save(work, step, schedule)
        if job.validate:
            work.accuracy = validate(work)
        if step == job.steps:
            break
    if job.metrics:
        work.accuracy = (right / count).item()
    if writer is not None:
        writer.close()


def writer_of(work: Work) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(work.folder / "tensorboard"))


def validate(work: Work) -> float:
    """Mean loss and accuracy, read once at the end."""
    work.model.eval()
    right, total, count = torch.zeros((), dtype=torch.int64), torch.zeros(()), 0
    with torch.inference_mode():
        for inputs, target in work.validation:
            outs = work.model(inputs)
            total += work.loss(outs, target)
            right += (outs.argmax(1) == target).sum()
            count += len(target)
    work.model.train()
    total.item()
    return right.item() / count


def save(work: Work, step: int, schedule: Any) -> None:
    """Written beside, forced to the disk, then renamed."""
    work.folder.mkdir(parents=True, exist_ok=True)
    state = {"model": work.model.state_dict(), "optimizer": work.optimizer.state_dict()}
    state |= {"step": step, "schedule": schedule.state_dict() if schedule else None}
    path = work.folder / f"step-{step}.pt"
    with path.with_suffix(".tmp").open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    path.with_suffix(".tmp").replace(path)
    kept = sorted(work.folder.glob("step-*.pt"), key=lambda p: int(p.stem.split("-")[1]))
    for old in kept[:-2]:
        old.unlink()


def load(work: Work, schedule: Any) -> int:
    state = torch.load(newest(work.folder, "step-*.pt"), mmap=True)
    work.model.load_state_dict(state["model"])
    work.optimizer.load_state_dict(state["optimizer"])
    if schedule is not None:
        schedule.load_state_dict(state["schedule"])
    return state["step"]
