"""A run in each host that saves in the host's own way, and one that goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import host_loops as loops
import torch

SAVED = loops.STEPS
"""Steps behind the run when it is saved: an epoch, as no two hosts agree on the middle of one."""


def start(host: str, plugins: Mapping[str, Any], folder: Path, epochs: int = 1) -> Any:
    """Runs an epoch or more; what is saved after the first is what ``resume`` goes on from."""
    return _RUNS[host](plugins, folder, epochs, False)


def resume(host: str, plugins: Mapping[str, Any], folder: Path, epochs: int = 2) -> Any:
    """Goes on to the second epoch's end."""
    return _RUNS[host](plugins, folder, epochs, True)


def _transformers(plugins: Any, folder: Path, epochs: int, again: bool) -> Any:
    model = loops.new_model()
    host = loops.in_transformers(
        model,
        plugins,
        epochs,
        folder=folder,
        arguments={"save_strategy": "steps", "save_steps": SAVED},
        resume=folder / f"checkpoint-{SAVED}" if again else None,
    )
    return host, model


def _lightning(plugins: Any, folder: Path, epochs: int, again: bool) -> Any:
    from pytorch_lightning.callbacks import ModelCheckpoint

    model = loops.new_model()
    saver = ModelCheckpoint(folder, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    host = loops.in_lightning(
        model,
        plugins,
        epochs,
        trainer={"enable_checkpointing": True, "default_root_dir": folder},
        callbacks=[saver],
        resume=folder / "epoch=0.ckpt" if again else None,
    )
    return host, model


def _ignite(plugins: Any, folder: Path, epochs: int, again: bool) -> Any:
    from ignite.engine import Events
    from ignite.handlers import Checkpoint, DiskSaver

    model = loops.new_model()

    def prepare(engine: Any, host: Any, optimizer: Any) -> None:
        things = {"hatbus": host, "engine": engine, "model": model, "optimizer": optimizer}
        saver = DiskSaver(str(folder), create_dir=True, require_empty=False)
        save = Checkpoint(things, saver, n_saved=None, global_step_transform=lambda *_: _step(host))
        engine.add_event_handler(Events.EPOCH_COMPLETED, save)
        if again:
            file = folder / f"checkpoint_{SAVED}.pt"
            Checkpoint.load_objects(things, torch.load(file, weights_only=True))

    return loops.in_ignite(model, plugins, epochs, prepare=prepare), model


def _accelerate(plugins: Any, folder: Path, epochs: int, again: bool) -> Any:
    model = loops.new_model()

    def ended(host: Any) -> None:
        host.accelerator.save_state(str(folder / f"step-{_step(host)}"))

    host = loops.in_accelerate(
        model,
        plugins,
        epochs,
        ended=ended,
        resume=folder / f"step-{SAVED}" if again else None,
    )
    return host, model


def _plain(plugins: Any, folder: Path, epochs: int, again: bool) -> Any:
    model = loops.new_model()
    file = folder / "plain.pt"
    state = torch.load(file, weights_only=True) if again else None

    def ended(ctx: Any, optimizer: Any) -> None:
        if ctx.position.global_step == SAVED:
            ctx.emit.save_checkpoint(ctx, "mine")  # those who wrap it write what they have
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**parts, "plugins": ctx.bus.state_dict()}, file)

    return loops.in_plain(model, plugins, epochs, ended=ended, state=state), model


def _step(host: Any) -> int:
    return int(host.ctx.position.global_step)


_RUNS = {
    "transformers": _transformers,
    "lightning": _lightning,
    "ignite": _ignite,
    "accelerate": _accelerate,
    "plain": _plain,
}
