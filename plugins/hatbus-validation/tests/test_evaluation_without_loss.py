"""Models that return losses in training and predictions in eval are validated as they are."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from validated import batches

from hatbus import BatchProcessor, Trainer, hookimpl
from hatbus.batches import collect_loss_by_index
from hatbus_validation.validation import Validation

torch.set_num_threads(1)


class Detector(nn.Module):
    """As torchvision's: a dict of losses in training, a list of predictions in eval."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Any:
        x, y = batch
        if self.training:
            return {"box_loss": ((self.layer(x) - y) ** 2).mean()}
        return [{"boxes": one} for one in self.layer(x)]


class MeanBox:
    """Publishes the mean prediction."""

    @hookimpl
    def on_epoch_begin(self) -> None:
        self.found: list[Tensor] = []

    @hookimpl
    def on_batch_end(self, model_outs: Any, losses: Any) -> None:
        assert losses == {}
        self.found += [one["boxes"] for one in model_outs]

    @hookimpl
    def on_epoch_end(self, ctx: Any) -> None:
        ctx.log({"mean_box": torch.cat(self.found).mean()})


def train(*plugins: Any, model: nn.Module | None = None, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = model or Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, batches(4), None, plugins, **options)
    trainer.fit(num_epochs=1)
    return trainer


@pytest.mark.parametrize(
    "processor",
    [
        None,
        BatchProcessor(need_grad_update=False),
        BatchProcessor(need_grad_update=False, loss_collector=lambda outs: {}),
        BatchProcessor(need_grad_update=False, loss_collector=lambda outs: None),
        BatchProcessor(need_grad_update=False, loss_collector=lambda outs: outs["box_loss"]),
        BatchProcessor(need_grad_update=False, loss_collector=collect_loss_by_index(0)),
    ],
)
def test_predictions_reach_the_callbacks_and_no_loss_is_asked_for(processor: Any) -> None:
    held = batches(2, seed=5)
    trainer = train(Validation(held, processor, [MeanBox()]))
    with torch.no_grad():
        expected = torch.cat([trainer.ctx.model.layer(x) for x, _ in held]).mean()  # type: ignore[operator]  # the detector's
    assert torch.equal(trainer.ctx.latest["val/mean_box"], expected)


def test_losses_that_an_evaluation_has_are_published() -> None:
    class Always(Detector):
        def forward(self, batch: Any) -> Any:
            x, y = batch
            return {"pred": self.layer(x), "loss": ((self.layer(x) - y) ** 2).mean()}

    trainer = train(Validation(batches(2, seed=5)), model=Always())
    assert float(trainer.ctx.latest["val/loss"]) > 0


def test_without_losses_and_callbacks_the_log_says_that_nothing_is_published(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "hatbus"):
        train(Validation(batches(2), val_interval=1))
    told = [m for m in caplog.messages if "returned no loss in eval mode" in m]
    assert len(told) == 1
