"""What one batch is: its outputs, its losses, and the mistakes that are explained."""

from __future__ import annotations

import copy
from collections.abc import Generator
from typing import Any

import pytest
import torch
from tiny import batches, hearing, tiny_trainer, weights

from hatbus import BatchProcessor, hookimpl
from hatbus.errors import JobError
from hatbus.loop.context import Context


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, t: 3.0, "loss 'loss' is a float; accepted: a 0-d tensor"),
        (lambda o, t: o - t, r"loss 'loss' is a tensor of shape \(4, 1\)"),
        (lambda o, t: {}, "there is no loss"),
    ],
)
def test_a_loss_that_is_none_is_explained(loss: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        tiny_trainer(loss=loss).fit(num_steps=1)


def test_a_model_may_return_its_own_losses() -> None:
    class Model(torch.nn.Linear):
        def forward(self, batch: Any) -> Any:
            out = super().forward(batch[0])
            value = torch.nn.functional.mse_loss(out, batch[1])
            return {"prediction": out, "mse_loss": value, "other_loss": 0 * value}

    torch.manual_seed(0)
    trainer = tiny_trainer(model=Model(3, 1), loss=lambda: None)
    trainer = type(trainer)(trainer.ctx.model, trainer.ctx.optimizer, batches(3))
    trainer.fit(num_steps=2)
    assert sorted(trainer.ctx.losses) == ["mse_loss", "other_loss"]


def test_a_batch_that_is_no_pair_is_explained() -> None:
    with pytest.raises(JobError, match="a batch is a Tensor, not a pair"):
        tiny_trainer(data=[torch.zeros(2, 3)]).fit(num_steps=1)


def test_the_losses_of_a_step_are_what_its_gradient_is_of() -> None:
    mse, seen = torch.nn.functional.mse_loss, []
    recorder = hearing(["on_step_end"], lambda _, v: seen.append(float(v["losses"]["loss"])))
    trainer = tiny_trainer([recorder], batches(3), accumulate=2)
    model = copy.deepcopy(trainer.ctx.model)
    expected = sum(mse(model(x), y).item() for x, y in batches(3)[:2]) / 2
    trainer.fit(num_steps=1)
    assert seen == [pytest.approx(expected)]


def test_model_outs_are_none_before_the_forward_pass() -> None:
    seen: list[Any] = []
    events = ["on_batch_begin", "on_forward_begin", "skip_batch"]
    recorder = hearing(events, lambda e, v: seen.append(v.get("model_outs")))
    tiny_trainer([recorder], accumulate=2).fit(num_steps=3)
    assert set(seen) == {None}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_processor_that_wants_no_gradients_makes_no_update(precision: str) -> None:
    processor = BatchProcessor(torch.nn.functional.mse_loss, need_grad_update=False)
    trainer = tiny_trainer(loss=None, batch_processor=processor, precision=precision)
    before = weights(trainer)
    trainer.fit(num_steps=2)
    assert trainer.ctx.updates == 0
    assert weights(trainer).equal(before)


@pytest.mark.parametrize("is_heard", [False, True])
def test_a_run_batch_of_ones_own_finds_the_outputs(is_heard: bool) -> None:
    class Own:
        @hookimpl
        def run_batch(self, ctx: Context) -> dict[str, torch.Tensor]:
            ctx.emit.forward(ctx)
            losses: dict[str, torch.Tensor] = ctx.emit.compute_loss(ctx)
            ctx.losses, ctx.loss = losses, losses["loss"]
            ctx.emit.backward(ctx)
            return losses

    plugins = [Own(), *([hearing(["on_forward_end"], lambda *_: None)] if is_heard else [])]
    trainer, plain = tiny_trainer(plugins), tiny_trainer()
    trainer.fit(num_steps=2)
    plain.fit(num_steps=2)
    assert weights(trainer).equal(weights(plain))


def test_a_step_that_failed_has_no_losses_of_the_step_before() -> None:
    class GoesOn:
        @hookimpl(wrapper=True)
        def run_step(self) -> Generator[None, Any, Any]:
            try:
                return (yield)
            except MemoryError:
                return False

    class Fails:
        @hookimpl
        def on_forward_begin(self, global_step_id: int) -> None:
            if global_step_id == 1:
                raise MemoryError

    found: list[list[str]] = []
    hears = hearing(["on_step_end"], lambda _, v: found.append([*v["losses"]]))
    tiny_trainer([GoesOn(), Fails(), hears]).fit(num_steps=3)
    assert found == [["loss"], [], ["loss"]]


class Doubles:
    """Comes while the run is on, and surrounds forward or loss."""

    def __init__(self, *heard: str) -> None:
        self.heard = heard
        self.seen: list[float] = []

    @hookimpl(wrapper=True)
    def forward(self) -> Generator[None, Any, Any]:
        return 2 * (yield) if "forward" in self.heard else (yield)

    @hookimpl
    def on_forward_end(self, model_outs: torch.Tensor) -> None:
        self.seen.append(float(model_outs.detach().mean()))


def test_a_plugin_that_comes_in_mid_run_is_heard_from_the_next_batch_on() -> None:
    found: dict[int, float] = {}

    class Brings:
        @hookimpl
        def on_step_end(self, ctx: Context, global_step_id: int) -> None:
            found[global_step_id] = float(ctx.model_outs.detach().mean())
            if global_step_id == 2:
                ctx.bus.register(doubles, "doubles")
            if global_step_id == 4:
                ctx.bus.unregister("doubles")

    doubles = Doubles("forward")
    data = batches(1) * 6
    run = tiny_trainer([Brings()], data)
    for group in run.ctx.optimizer.param_groups:  # type: ignore[union-attr]
        group["lr"] = 0.0
    run.fit(num_steps=6)
    one = found[0]
    assert [found[step] / one for step in range(6)] == pytest.approx([1, 1, 1, 2, 2, 1])
    assert doubles.seen == pytest.approx([2 * one, 2 * one])


def test_the_short_way_through_a_batch_trains_as_the_long_one_does() -> None:
    weights = []
    for plugins in ([], [Doubles()]):  # surrounded, so each span is called on the bus
        run = tiny_trainer(plugins, batches(3))
        run.fit(num_steps=7)
        weights.append(run.ctx.model.weight.detach().clone())
    assert torch.equal(*weights)
    assert len(plugins[0].seen) == 7


class Passes:
    """Counts forward passes, by a wrapper around them."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl(wrapper=True)
    def forward(self) -> Any:
        self.count += 1
        return (yield)


class Ends:
    """Counts forward passes, by the moment of their end."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl
    def on_forward_end(self) -> None:
        self.count += 1


class Losses:
    """Counts losses, by a wrapper around them."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Any:
        self.count += 1
        return (yield)


class Joins:
    """Puts a plugin on the bus when a step begins, and takes it off again."""

    def __init__(self, plugin: object, begin: int, end: int) -> None:
        self.plugin, self.begin, self.end = plugin, begin, end

    @hookimpl
    def on_step_begin(self, ctx: Any, global_step_id: int) -> None:
        if global_step_id == self.begin:
            ctx.bus.register(self.plugin, "late")
        if global_step_id == self.end:
            ctx.bus.unregister("late")


@pytest.mark.parametrize("kind", [Passes, Ends, Losses])
def test_who_comes_to_forward_and_loss_in_mid_run_hears_every_batch_until_it_goes(
    kind: type[Passes | Ends | Losses],
) -> None:
    late = kind()
    tiny_trainer([Joins(late, begin=3, end=7)], batches(10)).fit(num_epochs=1)
    assert late.count == 4
