"""One small model and its data in the loops of five trainers, each with plugins of hatbus."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler

from hatbus import Context, Trainer, hookimpl, plugin
from hatbus.bus import Moments
from hatbus.loop import OpenSpans

SIZE, BATCH = 32, 4
STEPS = SIZE // BATCH


class Net(nn.Module):
    """A model that returns its loss; it takes a batch as one mapping or as keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 1)

    def forward(self, x: Any, y: Any = None) -> dict[str, torch.Tensor]:
        if isinstance(x, Mapping):
            x, y = x["x"], x["y"]
        outs = self.head(self.body(x))
        return {"loss": nn.functional.mse_loss(outs, y), "outs": outs}


def new_model() -> Net:
    torch.manual_seed(0)
    return Net()


def samples(size: int = SIZE) -> list[dict[str, torch.Tensor]]:
    x = torch.randn(size, 3, generator=torch.Generator().manual_seed(1))
    return [{"x": one, "y": one.sum(dim=0, keepdim=True)} for one in x]


def new_loader(size: int = SIZE, data: Any = None) -> DataLoader:
    return DataLoader(samples(size) if data is None else data, batch_size=BATCH)


def new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


# ---- the loops -----------------------------------------------------------------------------------


def in_hatbus(model: Net, plugins: Mapping[str, object], epochs: int, **_: Any) -> Any:
    trainer = Trainer(model, new_optimizer(model), new_loader(), plugins=plugins)
    trainer.fit(num_epochs=epochs)
    return trainer


def in_plain(
    model: Net,
    plugins: Mapping[str, object],
    epochs: int,
    *,
    each: Callable[[Context], None] | None = None,
    ended: Callable[[Context, Any], None] | None = None,
    state: Mapping[str, Any] | None = None,
    **_: Any,
) -> Any:
    """A loop of one's own around a bus, as docs/bus-alone.md has it."""
    from hatbus import BatchProcessor, Bus
    from hatbus.loop import Loop

    loader = new_loader()
    bus = Bus(plugins)
    bus.register(Moments(), "core.moments", core=True)
    bus.register(Loop(), "core.loop", core=True)
    bus.register(BatchProcessor(), "core.batch_processor", core=True)
    optimizer = new_optimizer(model)
    ctx = Context(bus, model=model, optimizer=optimizer, num_epochs=epochs)
    ctx.device, ctx.steps_per_epoch = torch.device("cpu"), len(loader)
    ctx.total_steps, spans, place = epochs * len(loader), OpenSpans(ctx), ctx.position
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        place.epoch, place.global_step = 1, len(loader)
        bus.register(Restores(state["plugins"]), "restores")

    try:
        spans.enter("run_loop")
        for ctx.epoch_id in range(place.epoch, epochs):
            ctx.step_id, ctx.global_step_id = 0, place.global_step
            spans.enter("run_epoch")
            _epoch(ctx, loader, each)
            is_over = ctx.control.stopped is None or ctx.control.leave_epoch()
            if is_over:
                place.epoch, place.step = place.epoch + 1, 0
            spans.leave("run_epoch")
            if not is_over:
                break
            if ended is not None:
                ended(ctx, optimizer)
        spans.leave("run_loop")
    except BaseException as error:
        spans.fail(error)
        raise
    return ctx


def _epoch(ctx: Context, loader: Any, each: Callable[[Context], None] | None) -> None:
    from hatbus.loop import serve_requests

    place = ctx.position
    for batch in loader:
        ctx.step_id, ctx.global_step_id = place.step, place.global_step
        place.step, place.global_step = place.step + 1, place.global_step + 1
        ctx.committed, ctx.losses, ctx.batches = False, {}, [(None, batch, 1.0)]
        ctx.emit.run_step(ctx)
        if each is not None:
            each(ctx)
        if ctx.control.due():
            serve_requests(ctx)
        if ctx.control.stopped is not None:
            return


@plugin(stage="checkpoint")
class Restores:
    """Gives plugins their states where hatbus's checkpoint does."""

    def __init__(self, states: Mapping[str, Any]) -> None:
        self.states = states

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        ctx.bus.load_state_dict(self.states)


def in_accelerate(
    model: Net,
    plugins: Mapping[str, object],
    epochs: int,
    *,
    accumulate: int = 1,
    each: Callable[[Any], None] | None = None,
    ended: Callable[[Any], None] | None = None,
    resume: Path | None = None,
    size: int = SIZE,
    data: Any = None,
    **options: Any,
) -> Any:
    from accelerate import Accelerator

    from hatbus_hosts import AccelerateHost

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model, optimizer, loader = accelerator.prepare(
        model, new_optimizer(model), new_loader(size, data)
    )
    host = AccelerateHost(
        accelerator,
        plugins,
        model=model,
        optimizer=optimizer,
        data_loader=loader,
        num_epochs=epochs,
        **options,
    )
    if resume is not None:
        accelerator.load_state(str(resume))
    with host:
        for _ in host.epochs():
            for batch in host.batches():
                with accelerator.accumulate(model):
                    outs = host.forward(batch)
                    host.backward(host.compute_loss(lambda found: found["loss"], outs))
                    host.step()
                    optimizer.zero_grad()
                if each is not None:
                    each(host)
            if ended is not None:
                host.end_epoch()
                ended(host)
    return host


def transformers_trainer(
    model: Net,
    callbacks: list[Any],
    epochs: int,
    *,
    folder: Path,
    arguments: Mapping[str, Any] | None = None,
    size: int = SIZE,
    data: Any = None,
    evaluate: bool = False,
) -> Any:
    """Transformers' ``Trainer``, which does nothing beside the loop unless it is told to."""
    import transformers

    transformers.logging.set_verbosity_error()

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

    given = {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "num_train_epochs": epochs,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "max_grad_norm": 0,
        "lr_scheduler_type": "constant",
        "remove_unused_columns": False,
        "label_names": ["y"],
        **(arguments or {}),
    }
    optimizer = new_optimizer(model)
    return InOrder(
        model=model,
        args=transformers.TrainingArguments(**given),
        train_dataset=samples(size) if data is None else data,
        eval_dataset=samples(8) if evaluate else None,
        optimizers=(optimizer, None),
        callbacks=callbacks,
    )


def in_transformers(
    model: Net,
    plugins: Mapping[str, object],
    epochs: int,
    *,
    folder: Path,
    resume: Path | bool | None = None,
    arguments: Mapping[str, Any] | None = None,
    callbacks: list[Any] | None = None,
    size: int = SIZE,
    evaluate: bool = False,
    **options: Any,
) -> Any:
    from hatbus_hosts import TransformersHost

    host = TransformersHost(plugins, **{"logs": False, **options})
    trainer = transformers_trainer(
        model,
        [host, *(callbacks or [])],
        epochs,
        folder=folder,
        arguments=arguments,
        size=size,
        evaluate=evaluate,
    )
    with host:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return host


def lightning_module(model: Net) -> Any:
    try:
        from pytorch_lightning import LightningModule
    except ImportError:
        from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: Any, index: int) -> Any:
            return self.net(batch)["loss"]

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", self.net(batch)["loss"])

        def configure_optimizers(self) -> Any:
            return new_optimizer(self.net)

    return Module()


def lightning_trainer(callbacks: list[Any], epochs: int, **options: Any) -> Any:
    import pytorch_lightning

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    given = {
        "max_epochs": epochs,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "devices": 1,
        "callbacks": callbacks,
        "num_sanity_val_steps": 0,
        **options,
    }
    return pytorch_lightning.Trainer(**given)


def in_lightning(
    model: Net,
    plugins: Mapping[str, object],
    epochs: int,
    *,
    trainer: Mapping[str, Any] | None = None,
    callbacks: list[Any] | None = None,
    resume: Path | None = None,
    size: int = SIZE,
    batches: Any = None,
    evaluate: bool = False,
    **options: Any,
) -> Any:
    from hatbus_hosts import LightningHost

    host = LightningHost(plugins, **{"model": "net", **options})
    fitter = lightning_trainer([host, *(callbacks or [])], epochs, **(trainer or {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitter.fit(
            lightning_module(model),
            new_loader(size) if batches is None else batches,
            new_loader(8) if evaluate else None,
            ckpt_path=resume,
        )
    return host


def in_ignite(
    model: Net,
    plugins: Mapping[str, object],
    epochs: int,
    *,
    prepare: Callable[[Any, Any, Any], None] | None = None,
    with_loss: bool = True,
    accumulate: int = 1,
    size: int = SIZE,
    called: nn.Module | None = None,
    batches: Any = None,
    **options: Any,
) -> Any:
    from ignite.engine import Engine

    from hatbus_hosts import attach_ignite

    optimizer, loss = new_optimizer(model), nn.MSELoss()
    forward = model if called is None else called

    def update(engine: Any, batch: Any) -> torch.Tensor:
        if (engine.state.iteration - 1) % accumulate == 0:
            optimizer.zero_grad()
        model.train()
        value = loss(forward(batch)["outs"], batch["y"])
        (value / accumulate if accumulate > 1 else value).backward()
        if engine.state.iteration % accumulate == 0:
            optimizer.step()
        return value

    engine = Engine(update)
    engine.logger.setLevel(logging.CRITICAL)
    host = attach_ignite(
        engine,
        plugins,
        model=model,
        optimizer=optimizer,
        loss=loss if with_loss else None,
        accumulate=accumulate,
        **options,
    )
    if prepare is not None:
        prepare(engine, host, optimizer)
    engine.run(new_loader(size) if batches is None else batches, max_epochs=epochs)
    return host


HOSTS: dict[str, Callable[..., Any]] = {
    "transformers": in_transformers,
    "lightning": in_lightning,
    "ignite": in_ignite,
    "accelerate": in_accelerate,
    "plain": in_plain,
}
