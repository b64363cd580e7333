"""A total beside its parts is warned of: all losses of a batch are summed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hatbus import Trainer
from hatbus.batches.counted_twice import counted_twice

WEIGHT = nn.Parameter(torch.ones(3))


def parts() -> tuple[torch.Tensor, torch.Tensor]:
    return (WEIGHT * 2).mean(), (WEIGHT * 3).pow(2).mean()


def detector() -> dict[str, torch.Tensor]:
    a, b = parts()
    return {"loss": a + b, "loss_box": a, "loss_cls": b}


def weighted() -> dict[str, torch.Tensor]:
    a, b = parts()
    return {"loss_box": a, "loss_cls": b, "loss": torch.stack([a, 0.5 * b]).sum() / 2}


def one_part() -> dict[str, torch.Tensor]:
    a, b = parts()
    return {"total": 0.25 * a + b, "loss_box": a}


def twice_named() -> dict[str, torch.Tensor]:
    a, b = parts()
    return {"loss": a, "loss_box": a, "loss_cls": b}


def plain() -> dict[str, torch.Tensor]:
    a, b = parts()
    return {"loss_box": a, "loss_cls": b}


def detached() -> dict[str, torch.Tensor]:
    a, b = parts()
    return {"loss": (a + b).detach(), "loss_box": a, "loss_cls": b}


def constants() -> dict[str, torch.Tensor]:
    return {"loss": parts()[0], "loss_scale": torch.tensor(1024.0), "num": torch.tensor(3.0)}


def another_loss_of_it() -> dict[str, torch.Tensor]:
    a, b = parts()
    return {"loss_box": a, "loss_gap": (a - b).pow(2)}


CASES = {
    detector: {"loss": ["loss_box", "loss_cls"]},
    weighted: {"loss": ["loss_box", "loss_cls"]},
    one_part: {"total": ["loss_box"]},
    twice_named: {"loss": ["loss_box"]},
    plain: {},
    detached: {},
    constants: {},
    another_loss_of_it: {},
}


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_what_holds_others_is_found(make: Any) -> None:
    assert counted_twice(make()) == CASES[make]


def test_of_a_compiled_loss_it_is_found_by_value() -> None:
    made = torch.compile(detector, backend="aot_eager")()
    assert counted_twice(made) == {"loss": ["loss_box", "loss_cls"]}
    assert counted_twice(torch.compile(plain, backend="aot_eager")()) == {}


class Returns(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.weight, self.make = WEIGHT, make

    def forward(self, _: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.make()


def said(make: Any, caplog: pytest.LogCaptureFixture, **data: Any) -> list[str]:
    model = Returns(make)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Trainer(model, optimizer, data or [torch.ones(1)] * 3).fit(num_epochs=2)
    return caplog.messages


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    (text,) = said(detector, caplog)
    assert text == (
        "loss 'loss' holds 'loss_box', 'loss_cls', and all losses are summed, so what it holds is "
        "trained twice; return the total or its parts, or the total as loss.detach()"
    )


def test_it_is_said_once_for_each_task(caplog: pytest.LogCaptureFixture) -> None:
    found = said(detector, caplog, det=[torch.ones(1)] * 2, seg=[torch.ones(1)] * 2)
    assert [text[:12] for text in found] == ["task 'det': ", "task 'seg': "]


def test_nothing_is_said_where_every_loss_is_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert said(plain, caplog) == []
