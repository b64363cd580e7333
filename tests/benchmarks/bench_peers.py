"""What the whole trainer costs beside other trainers, on one model, in one run.

The tiny model of ``bench_loop`` (Linear(8, 8), SGD, batches in a list), one thread: a bare torch
loop, hatbus, and those of Ignite, Accelerate and Lightning that are installed; put them into an
environment of their own::

    pip install -c constraints.txt . pytorch-ignite accelerate lightning
    python tests/benchmarks/bench_peers.py [repetitions]

Each trainer runs with nothing enabled, and with 5 callbacks that do nothing on every event that it
has in a step (the number is shown; Accelerate has none). Interleaved repetitions; a run of 50 steps
is subtracted from one of 450, so that starting a trainer does not count.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import cycle, islice
from typing import Any

import torch
from bench_loop import Run, bare, bare_with_calls, bare_without_zero_grad, compare, hatbus, tiny

CALLBACKS = 5


def ignite(count: int) -> Run:
    """Ignite's engine with ``count`` handlers on each of the events of an iteration."""
    from ignite.engine import Engine, Events

    model, optimizer, data, loss_of = tiny()

    def update(_engine: Any, batch: Any) -> Any:
        inputs, target = batch
        optimizer.zero_grad()
        loss = loss_of(model(inputs), target)
        loss.backward()
        optimizer.step()
        return loss

    engine = Engine(update)
    for event in (
        Events.GET_BATCH_STARTED,
        Events.GET_BATCH_COMPLETED,
        Events.ITERATION_STARTED,
        Events.ITERATION_COMPLETED,
    ):
        for _ in range(count):
            engine.add_event_handler(event, lambda _engine: None)
    return lambda steps: _quietly(lambda: engine.run(data, max_epochs=1, epoch_length=steps))


def accelerate() -> Run:
    """A loop of one's own over what Accelerate has prepared; it has no callbacks."""
    from accelerate import Accelerator

    model, optimizer, data, loss_of = tiny()
    accelerator = Accelerator(cpu=True)
    prepared, update = accelerator.prepare(model, optimizer)

    def run(steps: int) -> None:
        for inputs, target in islice(cycle(data), steps):
            update.zero_grad()
            accelerator.backward(loss_of(prepared(inputs), target))
            update.step()

    return run


LIGHTNING_EVENTS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


def lightning(count: int) -> Run:
    """Lightning with ``count`` callbacks, everything else switched off."""
    from lightning import pytorch as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    _, _, data, loss_of = tiny()

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.tuned, _, _ = tiny()

        def training_step(self, batch: Any) -> torch.Tensor:
            inputs, target = batch
            return loss_of(self.model(inputs), target)

        def configure_optimizers(self) -> Any:
            return self.tuned

    def nothing(*_: Any, **__: Any) -> None: ...

    callback = type("Callback", (pl.Callback,), dict.fromkeys(LIGHTNING_EVENTS, nothing))

    def run(steps: int) -> None:
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback() for _ in range(count)],
        )
        trainer.fit(Module(), _Loader(data))

    return lambda steps: _quietly(lambda: run(steps))


class _Loader:
    """Batches that Lightning does not take for a list of loaders."""

    def __init__(self, data: list[Any]) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)


def _quietly(run: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()


def runs() -> dict[str, Run]:
    """Everything that can be measured here."""
    found: dict[str, Run] = {
        "bare torch loop": bare(),
        "with gradients set to None by hand": bare_without_zero_grad(),
        "with 5 x 10 direct calls": bare_with_calls(),
        "hatbus, no plugin": hatbus(0),
        "hatbus, no plugin, nan='ignore'": hatbus(0, nan="ignore"),
        "hatbus, 5 plugins on 12 events": hatbus(CALLBACKS),
    }
    if find_spec("ignite"):
        found["ignite, no handler"] = ignite(0)
        found["ignite, 5 handlers on 4 events"] = ignite(CALLBACKS)
    if find_spec("accelerate"):
        found["accelerate"] = accelerate()
    if find_spec("lightning"):
        found["lightning, no callback"] = lightning(0)
        found[f"lightning, 5 callbacks on {len(LIGHTNING_EVENTS)} events"] = lightning(CALLBACKS)
    return found


if __name__ == "__main__":
    compare(runs(), int(sys.argv[1]) if len(sys.argv) > 1 else 15)
