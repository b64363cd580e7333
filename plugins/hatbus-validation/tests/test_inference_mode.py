"""Validation in inference mode: the same numbers, and nothing of it stays behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from validated import Average, batches, trainer, weights

from hatbus import Context, hookimpl
from hatbus_validation.validation import Validation


class Mode:
    """Notes in which mode it is called, and keeps a tensor that it publishes."""

    def __init__(self) -> None:
        self.modes: list[bool] = []

    @hookimpl
    def on_batch_end(self, ctx: Context, losses: dict[str, torch.Tensor]) -> None:
        self.modes.append(torch.is_inference_mode_enabled())
        ctx.log({"last": losses["loss"]})


class Cached(nn.Linear):
    """Keeps what it makes for a longer batch, as a table of positions is kept."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.tables: dict[int, Any] = {}
        self.scale: torch.Tensor | None = None
        self.parts: list[torch.Tensor] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        size = len(inputs)
        if size not in self.tables:
            self.tables[size] = torch.ones(size, 1) * 1.5
            self.scale = self.tables[size][:1] + 0.5
            self.parts = [self.scale + 1.0]
        return super().forward(inputs) * self.tables[size] * self.scale + self.parts[0]


@pytest.mark.parametrize("wanted", [False, True])
def test_it_runs_in_the_mode_that_was_asked_for_with_equal_numbers(wanted: bool) -> None:
    found = []
    for inference_mode in (False, wanted):
        mode = Mode()
        validation = Validation(batches(3), callbacks=[mode], inference_mode=inference_mode)
        run = trainer(Average(), validation)
        run.fit(num_epochs=2)
        found.append((run.ctx.latest["val/last"], *weights(run).values()))
    assert mode.modes == [wanted] * 6
    assert all(map(torch.equal, *found))


def test_what_is_published_and_what_a_module_keeps_can_be_trained_with_afterwards() -> None:
    model, longer = Cached(), [*batches(1, size=6), *batches(2, size=4)]

    class Uses:
        """Trains with what the validation published and cached."""

        @hookimpl(wrapper=True)
        def compute_loss(self, ctx: Context) -> Any:
            losses = yield
            last = ctx.latest.get("val/last", torch.ones(()))
            return {"loss": losses["loss"] * last.mul_(1.0)}

    validation = Validation(longer, callbacks=[Mode()], inference_mode=True)
    run = trainer(validation, Uses(), data=[*batches(2, size=6)], model=model)
    run.fit(num_epochs=3)
    assert not any(table.is_inference() for table in model.tables.values())
    assert sorted(model.tables) == [4, 6]
