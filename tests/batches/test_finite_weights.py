"""Weights that became NaN: never saved, never the end of a run without a word."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tiny import batches, hearing, tiny_trainer
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.batches.finite_tensors import not_finite
from hatbus.errors import NonFiniteError


def nan_gradient_at(step: int) -> Any:
    """A loss that is finite in every step, and whose gradient is NaN in one."""
    count = iter(range(1000))

    def loss(outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        zero = torch.sqrt((outs - outs.detach()).square().sum())  # 0, with the gradient inf * 0
        return (outs - target).square().mean() + (zero if next(count) == step else 0)

    return loss


class Saves:
    """Somebody who saves after every step."""

    def __init__(self) -> None:
        self.saved: list[int] = []

    @hookimpl
    def save_checkpoint(self, ctx: Any) -> bool:
        self.saved.append(ctx.global_step_id)
        return True

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        if ctx.exception is None:
            ctx.save("every step")


def test_a_nan_gradient_of_a_finite_loss_ends_the_run_at_its_save() -> None:
    saves = Saves()
    trainer = tiny_trainer([saves], loss=nan_gradient_at(2))
    message = r"step 2 left parameter 'weight' \(3 of 3 entries are nan\), so it is not saved"
    with pytest.raises(NonFiniteError, match=message):
        trainer.fit(num_steps=5)
    assert saves.saved == [0, 1]


def test_a_run_does_not_end_well_with_nan_weights() -> None:
    heard: list[Any] = []
    ends = hearing(["on_loop_end"], lambda _, found: heard.append(found["ctx"].exception))
    trainer = tiny_trainer([ends], loss=nan_gradient_at(4))
    with pytest.raises(NonFiniteError, match="step 4 left parameter 'weight'") as caught:
        trainer.fit(num_steps=5)
    assert heard == [caught.value]


def test_a_step_with_a_nan_gradient_may_be_skipped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    saves = Saves()
    trainer = tiny_trainer([saves], loss=nan_gradient_at(2), nan="skip_step")
    ctx = trainer.fit(num_steps=5)
    assert (ctx.updates, saves.saved) == (4, [0, 1, 2, 3, 4])
    assert "(the gradient of 'weight' (3 of 3 entries are nan) in step 2)" in caplog.text
    assert torch.isfinite(ctx.model.weight).all()


def test_a_run_that_ignores_nan_saves_nothing_of_it_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    saves = Saves()
    tiny_trainer([saves], loss=nan_gradient_at(2), nan="ignore").fit(num_steps=5)
    assert saves.saved == [0, 1]
    assert caplog.text.count("step 2 left parameter 'weight'") == 1


class Normed(nn.Module):
    """A batch norm, a mask that is infinite by design, and a buffer that is not set yet."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(3), nn.Linear(3, 1)
        self.register_buffer("mask", torch.full((3,), -torch.inf))
        self.register_buffer("unset", torch.full((2,), torch.nan))
        self.register_buffer("least", torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.least.fill_(-torch.inf)
        return self.last(self.norm(inputs))


def with_a_bad_batch(**options: Any) -> tuple[Trainer, Saves]:
    """A run whose third batch is NaN."""
    data = batches(5)
    data[2] = (torch.full_like(data[2][0], torch.nan), data[2][1])
    torch.manual_seed(0)
    model, saves = Normed(), Saves()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, optimizer, data, nn.functional.mse_loss, [saves], **options), saves


def test_running_statistics_of_a_skipped_step_are_those_of_before() -> None:
    trainer, saves = with_a_bad_batch(nan="skip_step")
    model: Any = trainer.fit(num_epochs=1).model
    trainer.bus.unregister("saves")
    data = [pair for number, pair in enumerate(batches(5)) if number != 2]
    torch.manual_seed(0)
    other = Normed()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    Trainer(other, optimizer, data, nn.functional.mse_loss).fit(num_epochs=1)
    assert torch.equal(model.norm.running_mean, other.norm.running_mean)
    assert model.norm.num_batches_tracked == 4
    assert saves.saved == [0, 1, 2, 3, 4]


def test_a_buffer_that_became_nan_is_not_saved_and_infinities_that_are_meant_are() -> None:
    trainer, saves = with_a_bad_batch(nan="ignore")
    trainer.fit(num_steps=3)
    assert saves.saved == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_large_finite_numbers_are_finite(dtype: torch.dtype) -> None:
    large = torch.finfo(torch.float32 if dtype.is_complex else dtype).max
    tensors = {"a": torch.full((3, 3), large, dtype=dtype), "b": torch.ones(4, dtype=dtype)}
    assert list(not_finite(tensors.items())) == []
    tensors["b"][2] = torch.nan
    assert list(not_finite(tensors.items())) == ["'b' (1 of 4 entries are nan)"]
    tensors["b"][2] = -torch.inf
    assert list(not_finite(tensors.items(), nan_only=True)) == []


def test_what_holds_no_numbers_is_passed_over() -> None:
    lazy = nn.LazyLinear(2).weight
    odd = {"lazy": lazy, "meta": torch.ones(2, device="meta"), "whole": torch.ones(2).long()}
    odd["packed"] = torch.ones(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    assert list(not_finite({**odd, "empty": torch.ones(0)}.items())) == []
    bad = torch.tensor([1.0, 0, torch.inf, 0]).to_sparse()
    assert list(not_finite({"sparse": bad}.items())) == ["'sparse' (1 of 2 entries are inf)"]
