"""Lightning: a module, a trainer without what prints, and its own callbacks."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from peers.work import DECAY, MAX_NORM, SCALE, WIDTHS, Watcher, Work, do_nothing

EVENTS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
Nothing = type("Nothing", (pl.Callback,), dict.fromkeys(EVENTS, do_nothing))


class Module(pl.LightningModule):
    """The model, and what is logged of it."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.model, self.loss_of, self.samples = work.model, work.loss, 0
        self.__dict__["work"] = work
        if work.job.metrics or work.job.validate:
            self.accuracy = MulticlassAccuracy(WIDTHS[work.job.model][-1], average="micro")
            self.mean_loss = MeanMetric()

    def training_step(self, batch: Any) -> torch.Tensor:
        *task, inputs, target = batch
        outs = self.model(inputs, *task)
        loss = self.loss_of(outs, target)
        job = self.work.job
        if job.metrics:
            self.measure(loss, outs, target)
        elif job.scalars:
            self.log_dict(self.work.values(loss, 0))
        return loss

    def measure(self, loss: torch.Tensor, outs: torch.Tensor, target: torch.Tensor) -> None:
        """Updates metrics and logs them as its pages say: the objects, by step and epoch."""
        by_step = bool(self.work.job.scalars)
        self.accuracy(outs, target)
        self.mean_loss(loss)
        how = {"on_step": by_step, "on_epoch": True}
        self.log("accuracy", self.accuracy, **how)
        self.log("mean_loss", self.mean_loss, **how)
        if by_step:
            self.samples += len(target)
            self.log("loss", loss)
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
            self.log("samples", float(self.samples))

    def validation_step(self, batch: Any) -> None:
        inputs, target = batch
        outs = self.model(inputs)
        self.accuracy(outs, target)
        self.mean_loss(self.loss_of(outs, target))
        self.log("val_accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log("val_loss", self.mean_loss, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.work.optimizer
        if not self.work.job.lr:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.work.rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class Scales(pl.Callback):
    """Scales gradients in the event that its page names for looking at them."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def on_after_backward(self, *_: Any) -> None:
        torch._foreach_mul_(self.work.first_gradients(), SCALE)


class Watches(pl.Callback):
    """Tells a watcher; has a key of its own, as its page wants of several instances."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher

    @property
    def state_key(self) -> str:
        return self.watcher.name

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.watcher.step(trainer.global_step)

    def on_train_end(self, *_: Any) -> None:
        self.watcher.over()

    def on_exception(self, *_: Any) -> None:
        self.watcher.over()

    def state_dict(self) -> dict[str, Any]:
        return self.watcher.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.watcher.load_state_dict(state)


def train(work: Work) -> None:
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    job = work.job
    options = options_of(work)
    callbacks = [*(Nothing() for _ in range(job.callbacks)), *callbacks_of(work)]
    average = next((c for c in callbacks if isinstance(c, EMAWeightAveraging)), None)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=-1 if job.shuffled else job.steps,
        max_epochs=work.epochs if job.shuffled else None,
        callbacks=callbacks,
        **options,
    )
    checked = {"val_dataloaders": work.validation} if job.validate else {}
    where = {"ckpt_path": "last", "weights_only": False} if job.resume else {}
    trainer.fit(Module(work), work.data, **checked, **where)
    if average is not None:  # it puts the averages into the model when the training is over
        work.average = [p.detach() for p in work.model.parameters()]
    if job.metrics:
        work.accuracy = trainer.callback_metrics[
            "accuracy_epoch" if job.scalars else "accuracy"
        ].item()
    if job.validate:
        work.accuracy = trainer.callback_metrics["val_accuracy"].item()


def options_of(work: Work) -> dict[str, Any]:
    """Barebones where only the loop is measured; else nothing that prints."""
    job = work.job
    if not (job.scalars or job.metrics or job.save_every or job.validate or job.shuffled):
        limit = {"gradient_clip_val": MAX_NORM} if job.clip else {}
        return {"barebones": True, **limit}
    options: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": bool(job.save_every),
        "num_sanity_val_steps": 0,
        "gradient_clip_val": MAX_NORM if job.clip else None,
        "default_root_dir": job.folder,
    }
    if job.scalars:
        options["logger"] = TensorBoardLogger(job.folder, name="tensorboard")
        options["log_every_n_steps"] = 1
    if job.validate:
        options |= {"val_check_interval": 1, "check_val_every_n_epoch": None}
    if job.in_background:
        from pytorch_lightning.plugins.io import AsyncCheckpointIO

        options["plugins"] = [AsyncCheckpointIO()]
    return options


def callbacks_of(work: Work) -> list[pl.Callback]:
    job, callbacks = work.job, [Watches(watcher) for watcher in work.watchers]
    if job.ema:
        callbacks.append(EMAWeightAveraging(decay=DECAY))
    if job.scale:
        callbacks.append(Scales(work))
    if job.save_every:
        callbacks.append(
            ModelCheckpoint(
                dirpath=work.folder / "checkpoints",
                every_n_train_steps=job.save_every,
                save_last=None if job.in_background else "link",  # both together fail
            )
        )
    return callbacks
