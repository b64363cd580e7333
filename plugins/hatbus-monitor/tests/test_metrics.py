"""The own metrics against closed forms and torchmetrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as reference

from hatbus.errors import PluginError
from hatbus_monitor.metrics import Accuracy, Mean


def test_mean_is_the_sum_over_the_count() -> None:
    mean = Mean()
    for value in (1.0, torch.tensor(2.0), torch.tensor([3.0, 6.0])):
        mean.update(value)
    assert mean.compute().item() == 3.0


@pytest.mark.parametrize(
    "value", [[1, 2, 6], np.array([[1.0], [2.0], [6.0]]), np.float32(3), np.int64(3)]
)
def test_mean_takes_arrays_and_lists(value: Any) -> None:
    mean = Mean()
    mean.update(value)
    mean.update(np.array(3.0), 2)
    assert mean.compute().item() == 3.0
    assert mean.count == np.size(value) + 2


def test_weight_counts_a_value_so_often() -> None:
    mean = Mean()
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor([5.0, 7.0]), 0.5)
    assert mean.compute().item() == (3 + 6) / 4


def test_mean_of_nothing_is_nan() -> None:
    assert Mean().compute().isnan()


def test_reset_forgets_and_leaves_an_earlier_value_alone() -> None:
    mean = Mean()
    mean.update(4.0)
    before = mean.compute()
    mean.reset()
    mean.update(1.0)
    assert (before.item(), mean.compute().item()) == (4.0, 1.0)


def test_mean_stays_exact_where_float32_would_drift() -> None:
    mean = Mean()
    mean.update(torch.tensor(2.0**24))
    for _ in range(8):
        mean.update(torch.tensor(1.0))
    assert mean.total.item() == 2**24 + 8


def test_mean_does_not_hold_the_graph() -> None:
    mean = Mean()
    mean.update(torch.ones((), requires_grad=True) * 2)
    mean.update(torch.ones(3, requires_grad=True) * 2)
    assert not mean.total.requires_grad


def test_update_reads_no_value_from_the_device(reads) -> None:
    mean, accuracy = Mean(), Accuracy(ignore_index=0)
    mean.update(torch.tensor(1.0))
    accuracy.update(torch.randn(4, 3), torch.tensor([0, 1, 2, 1]))
    mean.compute(), accuracy.compute()
    assert reads.count == 0


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("ignore_index", [None, 1])
def test_accuracy_is_that_of_torchmetrics(top_k: int, ignore_index: int | None) -> None:
    chance = torch.Generator().manual_seed(1)
    accuracy = Accuracy(top_k=top_k, ignore_index=ignore_index)
    preds = torch.randn(4, 10, 5, generator=chance)
    target = torch.randint(5, (4, 10), generator=chance)
    for p, t in zip(preds, target, strict=True):
        accuracy.update(p, t)
    expected = reference.multiclass_accuracy(
        preds.flatten(0, 1),
        target.flatten(),
        num_classes=5,
        top_k=top_k,
        ignore_index=ignore_index,
        average="micro",
    )
    assert accuracy.compute().item() == pytest.approx(expected.item(), abs=1e-7)


def test_accuracy_of_pixels_counts_every_pixel() -> None:
    scores = torch.zeros(2, 3, 4, 4)
    scores[:, 1] = 1
    target = torch.ones(2, 4, 4, dtype=torch.long)
    target[0, 0] = 2
    accuracy = Accuracy()
    accuracy.update(scores, target)
    assert accuracy.compute().item() == 28 / 32


def test_scores_of_the_targets_shape_are_compared_with_the_threshold() -> None:
    accuracy = Accuracy(threshold=0.3)
    accuracy.update(torch.tensor([0.2, 0.4, 0.9]), torch.tensor([0, 1, 0]))
    assert accuracy.compute().item() == pytest.approx(2 / 3)


def test_a_single_score_per_target_is_compared_with_the_threshold() -> None:
    accuracy = Accuracy()
    accuracy.update(torch.tensor([[5.0], [5.0], [-5.0], [-5.0]]), torch.tensor([1, 1, 0, 1]))
    accuracy.update(torch.full((1, 1, 2), 0.9), torch.tensor([[1, 0]]))
    assert accuracy.compute().item() == pytest.approx(4 / 6)


def test_shapes_that_do_not_belong_together_are_named() -> None:
    with pytest.raises(PluginError, match=r"\(4, 3\) and targets of shape \(5,\); accepted"):
        Accuracy().update(torch.zeros(4, 3), torch.zeros(5))


def test_top_k_is_in_the_name() -> None:
    assert (Accuracy().name, Accuracy(top_k=5).name) == ("accuracy", "accuracy_top5")
    with pytest.raises(PluginError, match="top_k=0"):
        Accuracy(top_k=0)


@pytest.mark.parametrize("metric", [Mean(), Accuracy(ignore_index=0)])
def test_state_goes_on_where_it_was(metric: Mean) -> None:
    batches = [(torch.tensor([[0.0, 1.0]]), torch.tensor([n % 2])) for n in range(4)]
    update = metric.update if isinstance(metric, Accuracy) else lambda p, t: metric.update(p)
    for batch in batches[:2]:
        update(*batch)
    state = metric.state_dict()
    for batch in batches[2:]:
        update(*batch)
    expected = metric.compute()
    metric.load_state_dict(state)
    for batch in batches[2:]:
        update(*batch)
    assert torch.equal(metric.compute(), expected)
