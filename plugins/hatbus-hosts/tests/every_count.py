"""Steps and epochs are counted as the host counts them, wherever it saves: `tox -e hosts`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import host_loops as loops
import pytest
import torch
from host_loops import STEPS, new_model
from host_run import run
from torch import nn

from hatbus import Context, hookimpl
from hatbus_hosts import AccelerateHost, LightningHost, TransformersHost, attach_ignite

BATCHES = [(torch.rand(4, 3), torch.rand(4, 1))] * 8
"""All alike: an engine of Ignite that goes on inside an epoch begins anew with its data."""


class Epochs:
    """Takes the place behind every epoch, and the plan."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, int, int]] = []
        self.plan: tuple[Any, ...] = ()

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        self.plan = (ctx.num_epochs, ctx.num_steps, ctx.steps_per_epoch, ctx.total_steps)

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        place = ctx.position
        self.ends.append((place.epoch, place.step, place.global_step))


class Losses:
    """Takes every step's loss, and keeps them."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    @hookimpl
    def on_step_end(self, losses: dict[str, torch.Tensor]) -> None:
        self.losses.append(round(losses["loss"].item(), 6))

    def state_dict(self) -> dict[str, Any]:
        return {"losses": [*self.losses]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = [*state["losses"]]


# ---- Lightning -----------------------------------------------------------------------------------


def fit(trainer: Any, module: Any = None) -> None:
    trainer.fit(module or loops.lightning_module(new_model()), loops.new_loader())


@pytest.mark.parametrize("is_first", [True, False])
def test_an_epoch_is_over_also_where_lightning_accumulates_more_from_then_on(
    is_first: bool,
) -> None:
    from pytorch_lightning.callbacks import GradientAccumulationScheduler

    epochs, losses = Epochs(), Losses()
    trainer = loops.lightning_trainer([], 3)
    callbacks = [LightningHost([epochs, losses]), GradientAccumulationScheduler({0: 1, 1: 2})]
    trainer.callbacks[:0] = callbacks if is_first else callbacks[::-1]
    fit(trainer)
    assert epochs.ends == [(1, 0, STEPS), (2, 0, STEPS * 3 // 2), (3, 0, STEPS * 2)]
    assert len(losses.losses) == STEPS * 2


def test_an_epoch_whose_rest_a_module_leaves_out_is_over() -> None:
    epochs = Epochs()
    module = loops.lightning_module(new_model())
    module.on_train_batch_start = lambda batch, index: -1 if index == 2 else None
    trainer = loops.lightning_trainer([LightningHost([epochs])], 2)
    fit(trainer, module)
    assert [(epoch, step) for epoch, step, _ in epochs.ends] == [(1, 0), (2, 0)]


def test_an_epoch_that_ends_with_the_run_inside_it_is_not_over() -> None:
    epochs = Epochs()
    fit(loops.lightning_trainer([LightningHost([epochs])], -1, max_steps=STEPS + 2))
    assert epochs.ends == [(1, 0, STEPS), (1, 2, STEPS + 2)]
    assert epochs.plan == (None, STEPS + 2, STEPS, STEPS + 2)


def test_what_ends_the_run_first_is_the_plan() -> None:
    epochs = Epochs()
    fit(loops.lightning_trainer([LightningHost([epochs])], 2, max_steps=100 * STEPS))
    assert epochs.plan == (2, None, STEPS, 2 * STEPS)


def test_a_second_fit_goes_on_with_the_next_epoch() -> None:
    epochs, module = Epochs(), loops.lightning_module(new_model())
    trainer = loops.lightning_trainer([LightningHost([epochs])], 2)
    fit(trainer, module)
    trainer.fit_loop.max_epochs = 3
    fit(trainer, module)
    assert epochs.ends == [(1, 0, STEPS), (2, 0, 2 * STEPS), (3, 0, 3 * STEPS)]


# ---- Transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "plan"),
    [
        ({"num_train_epochs": 2}, (2, None, STEPS, 2 * STEPS)),
        ({"num_train_epochs": 1.5}, (None, STEPS * 3 // 2, STEPS, STEPS * 3 // 2)),
        ({"max_steps": STEPS + 1}, (None, STEPS + 1, STEPS, STEPS + 1)),
    ],
)
def test_a_part_of_an_epoch_is_planned_in_steps(
    arguments: dict[str, Any], plan: tuple[Any, ...], tmp_path: Path
) -> None:
    epochs = Epochs()
    run("transformers", [epochs], tmp_path, arguments=arguments)
    assert epochs.plan == plan


def test_a_loss_that_only_the_trainer_knows_is_missed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.layer(x)}

    host = TransformersHost([Epochs()], logs=False)
    data = [{"x": torch.rand(3)} for _ in range(16)]
    model: Any = Scores()
    trainer = loops.transformers_trainer(model, [host], 1, folder=tmp_path, data=data)
    trainer.compute_loss = lambda model, inputs, **_: model(**inputs)["logits"].square().mean()
    with caplog.at_level("WARNING", "hatbus"), host:
        trainer.train()
    assert caplog.text.count("the model returns no loss, so plugins hear of none") == 1


# ---- Ignite --------------------------------------------------------------------------------------


def engine_of(accumulate: int, plugins: list[Any], host_first: bool, save: Any) -> tuple[Any, Any]:
    from ignite.engine import Events, create_supervised_trainer

    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss()
    engine = create_supervised_trainer(
        model, optimizer, loss, gradient_accumulation_steps=accumulate
    )
    hosts: list[Any] = []
    if not host_first:
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: save(engine, model, hosts[0]))
    hosts.append(
        attach_ignite(engine, plugins, model=model, optimizer=optimizer, accumulate=accumulate)
    )
    if host_first:
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: save(engine, model, hosts[0]))
    return engine, hosts[0]


@pytest.mark.parametrize("host_first", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_run_in_ignite_goes_on_from_any_iteration(accumulate: int, host_first: bool) -> None:
    saved: list[Any] = []

    def save(engine: Any, model: nn.Module, host: Any) -> None:
        weights = {name: one.clone() for name, one in model.state_dict().items()}
        saved.append((dict(engine.state_dict()), weights, host.state_dict()))

    losses = Losses()
    engine, whole = engine_of(accumulate, [losses], host_first, save)
    engine.run(BATCHES, max_epochs=3)
    assert len(saved) == 24
    for iteration, (of_engine, weights, state) in enumerate(saved[:-1], 1):
        again = Losses()
        engine, host = engine_of(accumulate, [again], host_first, lambda *_: None)
        engine.load_state_dict(of_engine)
        host.model.load_state_dict(weights)
        host.load_state_dict(state)
        engine.run(BATCHES, max_epochs=3)
        assert vars_of(host) == vars_of(whole), iteration
        if iteration % accumulate == 0:  # else gradients are lost, which Ignite does not save
            assert again.losses == losses.losses, iteration


def vars_of(host: Any) -> tuple[int, ...]:
    place = host.ctx.position
    return place.epoch, place.step, place.global_step, host.ctx.updates


# ---- Accelerate ----------------------------------------------------------------------------------


def test_an_update_past_the_host_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), nn.Linear(3, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    host = AccelerateHost(accelerator, [Epochs()], model=model, optimizer=optimizer)
    with caplog.at_level("WARNING", "hatbus"), host:
        for _ in host.epochs(2):
            for x, _ in host.batches(BATCHES):
                accelerator.backward(model(x).mean())
                optimizer.step()
    assert caplog.text.count("step 0 came to its end without host.step()") == 1
    assert caplog.text.count("without host.step()") == 1


def in_accelerate(accumulate: int, losses: Losses, folder: Path, start: str = "") -> Any:
    """Saves after every batch, after every epoch, and at the end."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from torch.utils.data import DataLoader

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=accumulate, cpu=True)
    data = torch.rand(29, 3, generator=torch.Generator().manual_seed(1))
    model: nn.Module = nn.Linear(3, 1)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(data, batch_size=4)
    )
    host = AccelerateHost(
        accelerator, [losses], model=model, optimizer=optimizer, data_loader=loader
    )
    if start:
        accelerator.load_state(str(folder / start))
    numbers = itertools.count()
    with host:
        for _ in host.epochs(2):
            for batch in host.batches():
                with accelerator.accumulate(model):
                    outs = host.forward(batch)
                    host.backward(host.compute_loss(lambda found: found.square().mean(), outs))
                    host.step()
                    optimizer.zero_grad()
                if not start:
                    accelerator.save_state(str(folder / f"batch-{next(numbers):02d}"))
            if not start:
                accelerator.save_state(str(folder / f"epoch-{next(numbers):02d}"))
    return vars_of(host), accelerator.unwrap_model(model).weight.detach().clone()


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_loop_with_accelerate_goes_on_exactly_from_any_save(
    accumulate: int, tmp_path: Path
) -> None:
    whole = Losses()
    place, weight = in_accelerate(accumulate, whole, tmp_path)
    folders = sorted(found.name for found in tmp_path.iterdir())
    assert len(folders) == 18
    for folder in folders:
        again = Losses()
        reached, found = in_accelerate(accumulate, again, tmp_path, folder)
        assert (reached, again.losses) == (place, whole.losses), folder
        assert torch.equal(found, weight), folder
