"""Which losses are found in what a model or a loss function returned."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from tiny import tiny_trainer
from torch import Tensor, nn

from hatbus import BatchProcessor, hookimpl
from hatbus.batches import collect_loss_by_index, collect_loss_by_regex, collect_losses
from hatbus.errors import JobError

torch.set_num_threads(1)
ONE, TWO = torch.tensor(1.0), torch.tensor(2.0)


class Returns(nn.Module):
    """``w`` times what it is told; the gradient of ``w`` is then the sum of the losses."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))
        self.make = make

    def forward(self, batch: Tensor) -> Any:
        return self.make(self.w * 1)  # a loss of its own, which the update leaves alone


class Losses:
    """Keeps the step's losses."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}
        self.gradient = 0.0

    @hookimpl
    def on_step_end(self, losses: dict[str, Tensor], model: nn.Module) -> None:
        self.seen = {name: loss.item() for name, loss in losses.items()}
        self.gradient = model.w.grad.item()  # type: ignore[operator, union-attr]  # Returns has it


def trained(make: Any, collector: Any = None) -> Losses:
    losses = Losses()
    processor = BatchProcessor(loss_collector=collector)
    tiny_trainer(
        [losses],
        [torch.zeros(1)],
        model=Returns(make),
        loss=None,
        batch_processor=processor,
    ).fit(num_steps=1)
    return losses


@pytest.mark.parametrize(
    ("make", "losses"),
    [
        (lambda w: w * 2, {"loss": 2.0}),
        (lambda w: [w * 2], {"loss": 2.0}),
        (lambda w: [w * 2, w * 3], {"loss_0": 2.0, "loss_1": 3.0}),
        (lambda w: {"box_loss": w, "pred": w * 9}, {"box_loss": 1.0}),
        (
            lambda w: {"det": {"loss_cls": w, "aux": [{"loss_box": w * 2}]}, "pred": w * 9},
            {"det_loss_cls": 1.0, "det_aux_0_loss_box": 2.0},
        ),
        (lambda w: {"losses": {"cls": w, "box": w * 2}}, {"losses_cls": 1.0, "losses_box": 2.0}),
        (lambda w: {"loss": w * 3, "parts": {"loss_cls": w, "loss_box": w * 2}}, {"loss": 3.0}),
        (lambda w: [{"loss_cls": w, "pred": w * 9}, {"loss_cls": w * 2}], None),
    ],
)
def test_every_loss_is_found_and_counts_once(make: Any, losses: dict[str, float] | None) -> None:
    losses = losses or {"0_loss_cls": 1.0, "1_loss_cls": 2.0}
    found = trained(make)
    assert found.seen == losses
    assert found.gradient == sum(losses.values())


@pytest.mark.parametrize(
    ("collector", "losses"),
    [
        (lambda outs: [outs[0], outs[1]], {"loss_0": 2.0, "loss_1": 3.0}),
        (collect_loss_by_index(1), {"loss": 3.0}),
        (collect_loss_by_index([0, 1]), {"loss_0": 2.0, "loss_1": 3.0}),
        (collect_loss_by_regex(".*CLS$"), {"2_cls": 4.0}),
    ],
)
def test_a_collector_of_ones_own_may_give_a_list_or_names(
    collector: Any, losses: dict[str, float]
) -> None:
    found = trained(lambda w: (w * 2, w * 3, {"cls": w * 4}), collector)
    assert found.seen == losses
    assert found.gradient == sum(losses.values())


@pytest.mark.parametrize("make", [lambda w: {"pred": w}, lambda w: {"a": {"b": w}}, lambda w: []])
def test_training_without_a_loss_is_refused(make: Any) -> None:
    with pytest.raises(JobError, match="there is no loss; return a 0-d tensor"):
        trained(make)


def test_a_loss_that_is_no_number_is_named() -> None:
    with pytest.raises(JobError, match=r"loss 'det_loss' is a tensor of shape \(2,\)"):
        trained(lambda w: {"det": {"loss": w.repeat(2)}})


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(JobError, match=r"loss_collector: '\*' is no pattern"):
        collect_loss_by_regex("*")


def test_of_an_output_of_transformers_the_loss_is_the_whole() -> None:
    output = type("ModelOutput", (OrderedDict,), {"__module__": "transformers.utils.generic"})
    output_with_parts = type("MoeOutput", (output,), {})
    found = {"loss": TWO, "aux_loss": ONE}
    assert collect_losses(output_with_parts(found)) == {"loss": TWO}
    assert collect_losses(found) == found
