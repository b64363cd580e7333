"""Transformers: its trainer over a small model of one's own, told to be quiet."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
import transformers
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint

from peers.work import BATCH, DECAY, MAX_NORM, SCALE, TASKS, Batches, Watcher, Work, do_nothing

EVENTS = ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end")
Nothing = type("Nothing", (TrainerCallback,), dict.fromkeys(EVENTS, do_nothing))


class Model(nn.Module):
    """The model as its trainer wants it: named inputs, and the loss among the outputs."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.net, self.loss_of = work.model, work.loss

    def forward(self, inputs: Any, labels: Any, task: Any = None) -> dict[str, torch.Tensor]:
        outs = self.net(inputs, None if task is None else TASKS[int(task)])
        return {"loss": self.loss_of(outs, labels), "logits": outs}


class OwnTrainer(Trainer):
    """Its trainer with loaders, a loss that is measured and gradients that are scaled."""

    work: Work
    total, right, count = 0.0, 0.0, 0

    def get_train_dataloader(self) -> Any:
        return super().get_train_dataloader() if self.work.job.shuffled else named(self.work)

    def get_eval_dataloader(self, *_: Any) -> Any:
        return named_batches(self.work.validation)

    def training_step(self, *args: Any, **more: Any) -> torch.Tensor:
        loss = super().training_step(*args, **more)
        if self.work.job.scale:
            torch._foreach_mul_(self.work.first_gradients(), SCALE)
        return loss

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outs = model(**inputs)
        loss = outs["loss"]
        if self.work.job.metrics:
            self.total += loss.detach()
            self.right += (outs["logits"].argmax(1) == inputs["labels"]).sum()
            self.count += len(inputs["labels"])
        return (loss, outs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **more: Any) -> None:
        """Adds to what it logs by itself: loss, gradients' norm, learning rate and epoch."""
        if self.work.job.metrics and "loss" in logs:
            accuracy = (self.right / self.count).item()
            logs |= {
                "accuracy": accuracy,
                "mean_loss": (self.total / self.state.global_step).item(),
            }
        elif "loss" in logs:
            logs |= self.work.values(logs["loss"], 0)
        super().log(logs, *args, **more)


class Averages(TrainerCallback):
    """It has none of its own: torch's."""

    def __init__(self, work: Work) -> None:
        self.model = work.model
        self.average = AveragedModel(work.model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.average.update_parameters(self.model)


class Watches(TrainerCallback, ExportableState):
    """Tells a watcher; its state as its documentation wants it."""

    watchers: dict[str, Watcher]

    def __init__(self, name: str) -> None:
        self.name = name

    def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
        self.watchers[self.name].step(state.global_step)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.watchers[self.name].over()

    def state(self) -> dict[str, Any]:
        return {"args": {"name": self.name}, "attributes": self.watchers[self.name].state_dict()}

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "count":
            self.watchers[self.name].load_state_dict({"count": value})
        else:
            super().__setattr__(name, value)


def train(work: Work) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(work.folder / "tensorboard")
    job = work.job
    Watches.watchers = {watcher.name: watcher for watcher in work.watchers}
    callbacks = [*(Nothing() for _ in range(job.callbacks)), *map(Watches, Watches.watchers)]
    if job.ema:
        callbacks.append(averages := Averages(work))
        work.average = [p.detach() for p in averages.average.module.parameters()]
    schedule = torch.optim.lr_scheduler.LambdaLR(work.optimizer, work.rate) if job.lr else None
    trainer = OwnTrainer(
        Model(work),
        arguments(work),
        train_dataset=samples(work) if job.shuffled else [0],
        eval_dataset=[0] if job.validate else None,
        callbacks=callbacks,
        optimizers=(work.optimizer, schedule),
        compute_metrics=accuracy_of if job.validate else None,
        preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.work = work
    last = get_last_checkpoint(str(work.folder)) if job.resume else None
    trainer.train(resume_from_checkpoint=last)
    if job.metrics:
        work.accuracy = (trainer.right / trainer.count).item()
    if job.validate:
        work.accuracy = next(
            row["eval_accuracy"]
            for row in reversed(trainer.state.log_history)
            if "eval_accuracy" in row
        )


def arguments(work: Work) -> TrainingArguments:
    job = work.job
    return TrainingArguments(
        output_dir=job.folder,
        max_steps=-1 if job.shuffled else job.steps,
        num_train_epochs=work.epochs,
        per_device_train_batch_size=BATCH[job.model],
        per_device_eval_batch_size=BATCH[job.model],
        use_cpu=True,
        seed=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        max_grad_norm=MAX_NORM if job.clip else 0.0,
        lr_scheduler_type="constant",
        report_to="tensorboard" if job.scalars else "none",
        logging_strategy="steps" if job.scalars else "no",
        logging_steps=1,
        save_strategy="steps" if job.save_every else "no",
        save_steps=job.save_every or 1,
        save_total_limit=2,
        eval_strategy="steps" if job.validate else "no",
        eval_steps=1,
        ignore_data_skip=not job.shuffled,
        restore_callback_states_from_checkpoint=job.resume,
    )


def named(work: Work) -> Batches:
    """Batches with names, and numbers for tasks."""
    data = work.data
    if work.job.tasks > 1:
        data.batches = [
            {"task": torch.tensor(TASKS.index(t)), "inputs": i, "labels": target}
            for t, i, target in data.batches
        ]
        return data
    return named_batches(data)


def named_batches(data: Batches) -> Batches:
    data.batches = [{"inputs": inputs, "labels": target} for inputs, target in data.batches]
    return data


def samples(work: Work) -> list[dict[str, torch.Tensor]]:
    return [{"inputs": inputs, "labels": target} for inputs, target in work.dataset]


def accuracy_of(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}
