"""What five plugins cost in a host, against the same five as the host's own callbacks.

Each of the five does its work by the same function in both forms: an average of the weights, the
norm of the gradients, a look for NaN, a count of the losses, a record of the learning rate. Runs
take turns; what a run without any takes is taken off both. A host whose library is not installed is
left out: `tox -e hosts -- tests/benchmarks/bench_hosts.py` has them.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import host_loops as loops

from hatbus import hookimpl

SIZE = 1200
TURNS = 7
AT_MOST = 1.2


class Work:
    """What the five do, told of one thing each."""

    def __init__(self) -> None:
        self.averages: list[torch.Tensor] = []
        self.norms: list[torch.Tensor] = []
        self.total = torch.zeros(())
        self.rates: list[float] = []

    def average(self, model: torch.nn.Module) -> None:
        weights = [p.detach() for p in model.parameters()]
        if not self.averages:
            self.averages = [w.clone() for w in weights]
        torch._foreach_lerp_(self.averages, weights, 0.1)

    def norm(self, model: torch.nn.Module) -> None:
        grads = [p.grad for p in model.parameters()]
        self.norms = torch._foreach_norm(grads)

    def look(self, model: torch.nn.Module) -> None:
        norms = torch.stack([p.grad.sum() for p in model.parameters()])
        self.is_fine = bool(torch.isfinite(norms).all())

    def count(self, loss: torch.Tensor | None) -> None:
        if loss is not None:
            self.total += loss.detach()

    def rate(self, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def plugins() -> list[object]:
    """The five as plugins of hatbus."""
    work = Work()

    class Averages:
        @hookimpl
        def on_optimizer_step_end(self, model: Any) -> None:
            work.average(model)

    class Norms:
        @hookimpl
        def on_optimizer_step_begin(self, model: Any) -> None:
            work.norm(model)

    class Looks:
        @hookimpl
        def on_optimizer_step_begin(self, model: Any) -> None:
            work.look(model)

    class Counts:
        @hookimpl
        def on_step_end(self, losses: Any) -> None:
            work.count(losses.get("loss"))

    class Rates:
        @hookimpl
        def on_step_begin(self, optimizer: Any) -> None:
            work.rate(optimizer)

    return [Averages(), Norms(), Looks(), Counts(), Rates()]


def of_lightning() -> list[Any]:
    """The five as callbacks of Lightning."""
    from pytorch_lightning import Callback

    work = Work()

    class Averages(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            work.average(module.net)

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            work.norm(module.net)

    class Looks(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            work.look(module.net)

    class Counts(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            work.count(outputs["loss"])

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            work.rate(trainer.optimizers[0])

    return [Averages(), Norms(), Looks(), Counts(), Rates()]


def of_transformers() -> list[Any]:
    """The five as callbacks of Transformers, which are told no loss: the model is asked for it."""
    from transformers import TrainerCallback

    work = Work()

    class Averages(TrainerCallback):
        def on_optimizer_step(self, *_: Any, model: Any, **more: Any) -> None:
            work.average(model)

    class Norms(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any, **more: Any) -> None:
            work.norm(model)

    class Looks(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any, **more: Any) -> None:
            work.look(model)

    class Counts(TrainerCallback):
        def on_train_begin(self, *_: Any, model: Any, **more: Any) -> None:
            self.handle = model.register_forward_hook(self.keep)

        def keep(self, model: Any, given: Any, outs: Any) -> None:
            self.loss = outs["loss"]

        def on_step_end(self, *_: Any, **more: Any) -> None:
            work.count(self.loss)

        def on_train_end(self, *_: Any, **more: Any) -> None:
            self.handle.remove()

    class Rates(TrainerCallback):
        def on_step_begin(self, *_: Any, optimizer: Any, **more: Any) -> None:
            work.rate(optimizer)

    return [Averages(), Norms(), Looks(), Counts(), Rates()]


def in_lightning(callbacks: list[Any]) -> None:
    fitter = loops.lightning_trainer(callbacks, 1)
    fitter.fit(loops.lightning_module(loops.new_model()), loops.new_loader(SIZE))


def in_transformers(callbacks: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loops.transformers_trainer(
            loops.new_model(), callbacks, 1, folder=Path(folder), size=SIZE
        ).train()


def in_ignite(attach: Callable[..., None]) -> None:
    from ignite.engine import Engine

    model = loops.new_model()
    optimizer, loss = loops.new_optimizer(model), torch.nn.MSELoss()

    def update(engine: Any, batch: Any) -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(model(batch)["outs"], batch["y"])
        value.backward()
        optimizer.step()
        return value

    engine = Engine(update)
    attach(engine, model, optimizer, loss)
    engine.run(loops.new_loader(SIZE), max_epochs=1)


def handlers(engine: Any, model: Any, optimizer: Any, loss: Any) -> None:
    """The five as handlers of Ignite, and hooks of the optimizer for what Ignite does not tell."""
    from ignite.engine import Events

    work = Work()
    optimizer.register_step_pre_hook(lambda *_: work.norm(model))
    optimizer.register_step_pre_hook(lambda *_: work.look(model))
    optimizer.register_step_post_hook(lambda *_: work.average(model))
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: work.rate(optimizer))
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: work.count(e.state.output))


def attached(engine: Any, model: Any, optimizer: Any, loss: Any) -> None:
    from hatbus_hosts import attach_ignite

    attach_ignite(engine, plugins(), model=model, optimizer=optimizer, loss=loss)


def lightnings() -> dict[str, Callable[[], None]]:
    from hatbus_hosts import LightningHost

    return {
        "none": lambda: in_lightning([]),
        "own": lambda: in_lightning(of_lightning()),
        "host": lambda: in_lightning([LightningHost(plugins(), model="net")]),
    }


def transformers_() -> dict[str, Callable[[], None]]:
    from hatbus_hosts import TransformersHost

    return {
        "none": lambda: in_transformers([]),
        "own": lambda: in_transformers(of_transformers()),
        "host": lambda: in_transformers([TransformersHost(plugins(), logs=False)]),
    }


def ignites() -> dict[str, Callable[[], None]]:
    return {
        "none": lambda: in_ignite(lambda *_: None),
        "own": lambda: in_ignite(handlers),
        "host": lambda: in_ignite(attached),
    }


HOSTS = {"pytorch_lightning": lightnings, "transformers": transformers_, "ignite": ignites}


def seconds(run: Callable[[], None]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def measured(runs: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Seconds per step of each, the median of several turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(TURNS):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {name: median(found) / (SIZE // loops.BATCH) for name, found in times.items()}


def main() -> None:
    torch.set_num_threads(1)
    for library, make in HOSTS.items():
        if importlib.util.find_spec(library) is None:
            print(f"{library}: not installed, left out")
            continue
        found = measured(make())
        host, own = (found[name] - found["none"] for name in ("host", "own"))
        ratio = found["host"] / found["own"]
        print(
            f"{library}: a step {found['none'] * 1e6:.0f} us; five callbacks of its own "
            f"+{own * 1e6:.0f} us, five plugins in the host +{host * 1e6:.0f} us: "
            f"x{host / own:.2f} of the callbacks, x{ratio:.2f} of the step"
        )


if __name__ == "__main__":
    main()
