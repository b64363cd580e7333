"""What five plugins cost in a host, against the same five as the host's own callbacks.

Each of the five does its work by the same function in both forms: an average of the weights, the
norm of the gradients, a look for NaN, a count of the losses, a record of the learning rate.
Accelerate and a plain loop have no callbacks: there the five are five calls in the loop. Short runs
take turns, forth and back. Of each the lower quartile of its steps counts, less that of the run
without any in the same turn, and of all turns the median: a machine that is slower for a while is
so for all three. In Ignite nobody is told the loss before the update. Starting and ending a run do
not count. A host whose library is not installed is left out; they are all in
`tox exec -e hosts -- python tests/benchmarks/bench_hosts.py`. Ends with 1 where a host costs more
than AT_MOST times what its own callbacks do.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import host_loops as loops

from hatbus import hookimpl

SIZE, WARM, TURNS, AT_MOST = 600, 100, 40, 1.2


class Timed(list[Any]):
    """Samples that note when the first of each batch is asked for, once the loop is warm."""

    def __init__(self, samples: list[Any]) -> None:
        super().__init__(samples)
        self.times: list[float] = []

    def __getitem__(self, place: Any) -> Any:
        if place >= WARM and place % loops.BATCH == 0:
            self.times.append(time.process_time())
        return super().__getitem__(place)

    @property
    def steps(self) -> list[float]:
        """Seconds of each step, from one batch to the next."""
        return [after - before for before, after in pairwise(self.times)]


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


def in_lightning(data: Timed, callbacks: list[Any]) -> None:
    fitter = loops.lightning_trainer(callbacks, 1)
    fitter.fit(loops.lightning_module(loops.new_model()), loops.new_loader(data=data))


def in_transformers(data: Timed, callbacks: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loops.transformers_trainer(
            loops.new_model(), callbacks, 1, folder=Path(folder), data=data
        ).train()


def in_ignite(data: Timed, attach: Callable[..., object]) -> None:
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
    engine.run(loops.new_loader(data=data), max_epochs=1)


class Calls:
    """The five as calls in a loop that has no callbacks; without work they are not made."""

    def __init__(self, work: Work | None) -> None:
        self.work = work

    def begin(self, optimizer: Any) -> None:
        if self.work is not None:
            self.work.rate(optimizer)

    def update(self, model: Any, optimizer: Any) -> None:
        if self.work is not None:
            self.work.norm(model)
            self.work.look(model)
        optimizer.step()
        if self.work is not None:
            self.work.average(model)

    def end(self, loss: torch.Tensor) -> None:
        if self.work is not None:
            self.work.count(loss)


def in_accelerate(data: Timed, work: Work | None) -> None:
    from accelerate import Accelerator

    accelerator, calls, model = Accelerator(cpu=True), Calls(work), loops.new_model()
    model, optimizer, loader = accelerator.prepare(
        model, loops.new_optimizer(model), loops.new_loader(data=data)
    )
    for batch in loader:
        calls.begin(optimizer)
        with accelerator.accumulate(model):
            loss = model(batch)["loss"]
            accelerator.backward(loss)
            calls.update(model, optimizer)
            optimizer.zero_grad()
        calls.end(loss)


def in_plain(data: Timed, work: Work | None) -> None:
    model, calls = loops.new_model(), Calls(work)
    optimizer = loops.new_optimizer(model)
    for batch in loops.new_loader(data=data):
        calls.begin(optimizer)
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        calls.update(model, optimizer)
        calls.end(loss)


def with_bus(data: Timed) -> None:
    """A plain loop around a bus, as ``docs/examples/loop_of_your_own.py``."""
    from hatbus import Bus, Context

    model = loops.new_model()
    optimizer = loops.new_optimizer(model)
    ctx = Context(Bus(plugins()), model=model, optimizer=optimizer, num_epochs=1)
    with ctx.within("run_loop"), ctx.within("run_epoch"):
        for ctx.step_id, ctx.batch in enumerate(loops.new_loader(data=data)):
            ctx.global_step_id = ctx.step_id
            with ctx.within("run_step"):
                ctx.losses = {"loss": model(ctx.batch)["loss"]}
                optimizer.zero_grad()
                ctx.losses["loss"].backward()
                with ctx.within("optimizer_step"):
                    optimizer.step()


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

    attach_ignite(engine, plugins(), model=model, optimizer=optimizer)


Run = Callable[[Timed], object]


def lightnings() -> dict[str, Run]:
    from hatbus_hosts import LightningHost

    return {
        "none": lambda data: in_lightning(data, []),
        "own": lambda data: in_lightning(data, of_lightning()),
        "host": lambda data: in_lightning(data, [LightningHost(plugins(), model="net")]),
    }


def transformers_() -> dict[str, Run]:
    from hatbus_hosts import TransformersHost

    return {
        "none": lambda data: in_transformers(data, []),
        "own": lambda data: in_transformers(data, of_transformers()),
        "host": lambda data: in_transformers(data, [TransformersHost(plugins(), logs=False)]),
    }


def ignites() -> dict[str, Run]:
    return {
        "none": lambda data: in_ignite(data, lambda *_: None),
        "own": lambda data: in_ignite(data, handlers),
        "host": lambda data: in_ignite(data, attached),
    }


def accelerates() -> dict[str, Run]:
    return {
        "none": lambda data: in_accelerate(data, None),
        "own": lambda data: in_accelerate(data, Work()),
        "host": lambda data: loops.in_accelerate(
            loops.new_model(), {f"p{n}": one for n, one in enumerate(plugins())}, 1, data=data
        ),
    }


def plains() -> dict[str, Run]:
    return {
        "none": lambda data: in_plain(data, None),
        "own": lambda data: in_plain(data, Work()),
        "host": with_bus,
    }


HOSTS = {
    "pytorch_lightning": lightnings,
    "transformers": transformers_,
    "ignite": ignites,
    "accelerate": accelerates,
    "": plains,
}
"""The module of a host to its runs; none: a plain loop."""


def measured(runs: dict[str, Run]) -> dict[str, float]:
    """Seconds of a step without any, and what the callbacks and the host add to it."""
    turns: list[dict[str, float]] = []
    for turn in range(TURNS):
        found = {}
        for name in [*runs] if turn % 2 else [*reversed(runs)]:
            data = Timed(loops.samples(SIZE))
            runs[name](data)
            found[name] = quantiles(data.steps, n=4)[0]
        turns.append(found)
    bare = median(one["none"] for one in turns)
    added = {name: median(one[name] - one["none"] for one in turns) for name in ("own", "host")}
    return {"none": bare, **added}


def main(wanted: list[str]) -> int:
    """Prints what each host costs; 1 where one costs too much."""
    torch.set_num_threads(1)
    code = 0
    for library, make in HOSTS.items():
        if wanted and (library or "a plain loop") not in wanted:
            continue
        if library and importlib.util.find_spec(library) is None:
            print(f"{library}: not installed, left out")
            continue
        found = measured(make())
        host, own, bare = found["host"], found["own"], found["none"]
        is_missed = host > AT_MOST * own
        code |= is_missed
        print(
            f"{library or 'a plain loop'}: a step {bare * 1e6:.0f} us; five callbacks of its own "
            f"+{own * 1e6:.0f} us, five plugins in the host +{host * 1e6:.0f} us: "
            f"x{host / own:.2f} of the callbacks (at most {AT_MOST}: "
            f"{'MISSED' if is_missed else 'kept'}), x{(bare + host) / (bare + own):.2f} of the step"
        )
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
