"""Mixed precision: close to full precision, and no update where the scale overflows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import by_hand, hearing, tiny_trainer, weights

from hatbus import Trainer, hookimpl
from hatbus.batches.precision import scaled_step
from hatbus.data import OneTask


def small_scale(trainer: Trainer) -> None:
    """Begins fp16 with a loss scale that does not overflow in the first steps."""
    if trainer.ctx.scaler is not None:
        trainer.ctx.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_close_to_full_precision(precision: str) -> None:
    seen: list[torch.dtype] = []
    recorder = hearing(["on_forward_end"], lambda _, v: seen.append(v["model_outs"].dtype))
    trainer = tiny_trainer([recorder], precision=precision)
    small_scale(trainer)
    trainer.fit(num_epochs=4)
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert torch.allclose(weights(trainer), by_hand(12), atol=0.02)


def test_an_overflow_in_fp16_is_no_update() -> None:
    trainer = tiny_trainer(
        precision="fp16",
        nan="ignore",
        loss=lambda o, t: torch.nn.functional.mse_loss(o, t) * float("inf"),
    )
    before = weights(trainer)
    trainer.fit(num_steps=2)
    assert trainer.ctx.updates == 0
    assert weights(trainer).equal(before)
    assert trainer.ctx.scaler.get_scale() == 65536.0 / 4


def test_a_skipped_update_in_fp16_leaves_the_scaler_ready() -> None:
    class Skips:
        @hookimpl
        def skip_update(self, global_step_id: int) -> str | None:
            return "now" if global_step_id == 0 else None

    trainer = tiny_trainer([Skips()], precision="fp16")
    small_scale(trainer)
    trainer.fit(num_steps=3)
    assert trainer.ctx.updates == 2


def test_fp16_knows_of_the_update_of_an_optimizer_that_wraps_another() -> None:
    class Wraps(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state

        def step(self) -> None:
            self.inner.step()

    weight = torch.nn.Parameter(torch.ones(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = Wraps(torch.optim.SGD([weight], lr=0.1))
    for gradient, committed in ((1.0, True), (float("inf"), False)):
        scaler.scale(weight.sum() * gradient).backward()
        scaler.unscale_(optimizer)
        assert scaled_step(scaler, optimizer) is committed
        weight.grad = None


def test_fp16_goes_on_after_an_error_inside_the_update() -> None:
    trainer = tiny_trainer(precision="fp16")
    trainer.ctx.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)  # does not overflow
    failing = trainer.ctx.optimizer.register_step_pre_hook(lambda *_: 1 / 0)  # type: ignore[union-attr]
    with pytest.raises(ZeroDivisionError):
        trainer.fit(num_steps=1)
    failing.remove()
    trainer.fit(num_steps=3)
    assert trainer.ctx.position.global_step == 3


class DropsGradients:
    """Takes every gradient away in the second step."""

    @hookimpl
    def on_backward_end(self, ctx: Any, global_step_id: int) -> None:
        if global_step_id == 1:
            for parameter in ctx.model.parameters():
                parameter.grad = None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_without_gradients_is_an_update_of_nothing(precision: str) -> None:
    trainer = tiny_trainer([DropsGradients()], precision=precision)
    small_scale(trainer)
    trainer.fit(num_steps=1)
    before = weights(trainer)
    trainer.fit(num_steps=2)
    assert weights(trainer).equal(before)
    trainer.fit(num_steps=3)
    assert not weights(trainer).equal(before)
    assert trainer.ctx.updates == 3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_of_another_task_leaves_what_the_optimizer_holds_alone(precision: str) -> None:
    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)

        def forward(self, inputs: torch.Tensor, task: str) -> torch.Tensor:
            head: torch.nn.Module = getattr(self, task)
            return head(inputs)

    torch.manual_seed(0)
    model = Heads()
    data = [(torch.ones(4, 3), torch.ones(4, 1))] * 3
    optimizer = torch.optim.SGD(model.a.parameters(), lr=0.1)
    loss = torch.nn.functional.mse_loss
    trainer = Trainer(
        model,
        optimizer,
        {"a": data, "b": data},
        loss,
        precision=precision,
        task_sampler=OneTask(),
    )
    small_scale(trainer)
    before = model.b.weight.clone()
    trainer.fit(num_epochs=1)
    assert (trainer.ctx.updates, trainer.ctx.position.global_step) == (6, 6)
    assert model.b.weight.equal(before)
