"""Dotted module names: what they match, and what is said when they match nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hatbus.errors import JobError
from hatbus.loop.module_names import (
    find_module,
    module_names,
    unwrapped,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1)))
        self.side_backbone = nn.Linear(1, 1)
        self.nothing = None


WRAPPERS = {
    "plain": lambda m: m,
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "parallel": nn.DataParallel,
    "both": lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_go_through_a_wrapper_around_the_model(wrapper: str) -> None:
    model = Net()
    wrapped = WRAPPERS[wrapper](model)
    assert unwrapped(wrapped) is model
    assert find_module(wrapped, "backbone.1.0", "test") is model.backbone[1][0]
    assert find_module(wrapped, "", "test") is model


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_go_through_a_wrapper_around_a_part(wrapper: str) -> None:
    model = Net()
    inner = model.backbone
    model.backbone = WRAPPERS[wrapper](inner)
    assert find_module(model, "backbone", "test") is inner
    assert find_module(model, "backbone.1.0", "test") is inner[1][0]
    assert module_names(model) == [
        "backbone", "backbone.0", "backbone.1", "backbone.1.0", "side_backbone"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("backbne", "did you mean 'backbone' or "),
        ("backbone.10", "did you mean 'backbone.1.0' or "),
        ("bone", "did you mean 'backbone'"),
        ("xyz", "known: 'backbone', 'side_backbone'"),
        ("backbone.weight", "unknown module 'backbone.weight'"),
        ("nothing", "unknown module 'nothing'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_closest(name: str, words: str) -> None:
    with pytest.raises(JobError, match=f"freeze: modules: unknown module {name!r}") as caught:
        find_module(Net(), name, "freeze: modules")
    assert words in str(caught.value)


def test_a_model_without_submodules_says_so() -> None:
    with pytest.raises(JobError, match="has no submodules"):
        find_module(nn.Linear(1, 1), "x", "test")
