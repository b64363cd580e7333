"""Losses that are not finite never reach the weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import batches, by_hand, tiny_trainer, weights

from hatbus.batches.finite import FiniteLoss
from hatbus.errors import NonFiniteError


def nan_after(step: int) -> Any:
    calls = []

    def loss(outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        value = torch.nn.functional.mse_loss(outs, target)
        return value * float("nan") if len(calls) > step else value

    return loss


def test_a_nan_loss_ends_the_run_before_it_reaches_the_weights() -> None:
    trainer = tiny_trainer(loss=nan_after(4))
    with pytest.raises(NonFiniteError, match="loss 'loss' is nan in step 4; lower the learning"):
        trainer.fit(num_epochs=3)
    assert weights(trainer).equal(by_hand(4))


def test_nan_losses_may_be_skipped_but_not_for_ever() -> None:
    trainer = tiny_trainer(loss=nan_after(2), nan="skip_step")
    with pytest.raises(NonFiniteError, match="after 10 skipped steps in a row"):
        trainer.fit(num_steps=50)
    assert trainer.ctx.global_step_id == 12
    assert weights(trainer).equal(by_hand(2))


@pytest.mark.parametrize("bad", [0, 1, 2, 3])
def test_a_nan_in_any_micro_batch_is_seen_before_it_reaches_the_weights(bad: int) -> None:
    data = batches(4)
    data[bad] = (data[bad][0] * float("nan"), data[bad][1])
    trainer = tiny_trainer(data=data, accumulate=2)
    with pytest.raises(NonFiniteError, match=f"is nan in step {bad // 2}"):
        trainer.fit(num_epochs=1)
    assert weights(trainer).isfinite().all()


def test_a_run_after_too_many_skipped_steps_counts_from_none() -> None:
    trainer = tiny_trainer(
        nan="skip_step", loss=lambda o, t: torch.nn.functional.mse_loss(o, t) * float("nan")
    )
    for end in (11, 22):
        with pytest.raises(NonFiniteError, match="after 10 skipped steps in a row"):
            trainer.fit(num_steps=99)
        assert trainer.ctx.position.global_step == end


def test_losses_that_wait_to_be_looked_at_are_looked_at_before_a_checkpoint() -> None:
    finite = FiniteLoss(torch.device("cuda"))
    loss = torch.tensor(float("inf"))
    step = {"global_step_id": 3, "losses": {"loss": loss}, "scaler": None, "grad_norm": None}
    finite.see(SimpleNamespace(**step))
    with pytest.raises(NonFiniteError, match="loss 'loss' is inf in step 3"):
        finite.veto_checkpoint()
    assert finite.veto_checkpoint() is None
