"""Parameters that get gradients and that the optimizer does not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import batches
from torch import nn

from hatbus import Trainer, hookimpl


class Gradients:
    """The gradients of the first layer's weight at each update."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    @hookimpl
    def on_optimizer_step_begin(self, model: nn.Module) -> None:
        self.found.append(model[0].weight.grad.clone())


def run(*plugins: object, data: Any, frozen: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model[0].requires_grad_(not frozen)
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.0)
    Trainer(model, optimizer, data, nn.functional.mse_loss, plugins, accumulate=2).fit(num_epochs=2)
    return model


def test_their_gradients_are_those_of_the_step_alone() -> None:
    gradients = Gradients()
    data = batches(4)
    model = run(gradients, data=data)
    for step, found in enumerate(gradients.found):
        model.zero_grad()
        for inputs, target in data[step % 2 * 2 : step % 2 * 2 + 2]:
            (nn.functional.mse_loss(model(inputs), target) / 2).backward()
        assert torch.equal(found, model[0].weight.grad)


def test_they_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    run(data=batches(4))
    (text,) = caplog.messages
    assert text == (
        "the optimizer does not have '0.weight', '0.bias', so they stay as they are, though "
        "they ask for gradients; give them to the optimizer, or call requires_grad_(False) on "
        "them"
    )


def test_frozen_ones_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    run(data=batches(4), frozen=True)
    assert caplog.messages == []


@pytest.mark.parametrize("added", [False, True])
def test_new_ones_are_warned_of_unless_the_optimizer_is_given_them(
    added: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class NewHead:
        @hookimpl
        def on_step_begin(self, ctx: Any) -> None:
            if ctx.global_step_id == 1:
                ctx.model[1] = nn.Linear(3, 1)
                if added:
                    ctx.optimizer.add_param_group({"params": list(ctx.model[1].parameters())})

    run(NewHead(), data=batches(4), frozen=True)
    assert [text[:44] for text in caplog.messages] == (
        [] if added else ["the optimizer does not have '1.weight', '1.b"]
    )
