"""Pairs with what batches are made of."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn

from hatbus.data import to_device
from works_with.pair import Pair
from works_with.small import batches

KIND = "Batches"


class Named(NamedTuple):
    inputs: torch.Tensor
    target: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Record:
    inputs: torch.Tensor
    target: torch.Tensor


class Reads(nn.Module):
    """Computes its loss from a batch's parts, whatever they are kept in."""

    def __init__(self, part: Callable[[Any, str], Any]) -> None:
        super().__init__()
        self.rows = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 1))
        self.part = part

    def forward(self, batch: Any) -> torch.Tensor:
        inputs, target = self.part(batch, "inputs"), self.part(batch, "target")
        return nn.functional.mse_loss(self.rows(inputs), target)


def item(batch: Any, name: str) -> Any:
    return batch[name]


def moves(trainer: Any, place: Path) -> str:
    """The type of a batch that was moved; both its tensors have to be there."""
    part, data = trainer.ctx.model.part, trainer.ctx.data_loader
    there = to_device(data[0], torch.device("meta"))
    assert {part(there, name).device.type for name in ("inputs", "target")} == {"meta"}
    assert there is data[0] or part(data[0], "inputs").device.type == "cpu"
    return type(there).__name__


def of(
    library: str, name: str, make: Callable[[Any, Any], Any], part: Any = item, note: str = ""
) -> Pair:
    """A run on batches that ``make`` makes of inputs and target."""

    def parts(_: Path) -> dict[str, Any]:
        data = [make(inputs, target) for inputs, target in batches()]
        return {"model": Reads(part), "data": data, "loss": None}

    return Pair(KIND, library, name, parts, note, looks=moves)


def mapping(kind: Callable[[dict[str, Any]], Any]) -> Callable[[Any, Any], Any]:
    return lambda inputs, target: kind({"inputs": inputs, "target": target})


def collected(found: dict[str, Any]) -> Any:
    made: dict[str, Any] = defaultdict(list)
    made.update(found)
    return made


def of_attrs(inputs: Any, target: Any) -> Any:
    import attrs

    kind = attrs.make_class("Sample", ["inputs", "target"], frozen=True)
    return kind(inputs, target)


def tensor_dict(inputs: Any, target: Any) -> Any:
    from tensordict import TensorDict

    return TensorDict({"inputs": inputs, "target": target}, batch_size=[len(inputs)])


def tensor_class(inputs: Any, target: Any) -> Any:
    from tensordict import tensorclass

    class Sample:
        inputs: torch.Tensor
        target: torch.Tensor

    Sample.__annotations__ = {"inputs": torch.Tensor, "target": torch.Tensor}
    return tensorclass(Sample)(inputs=inputs, target=target, batch_size=[len(inputs)])


def encoding(found: dict[str, Any]) -> Any:
    from transformers import BatchEncoding

    return BatchEncoding(found)


def model_output(found: dict[str, Any]) -> Any:
    from transformers.utils import ModelOutput

    return ModelOutput(found)


PAIRS = [
    of("torch", "a mapping", mapping(dict)),
    of("torch", "a defaultdict", mapping(collected)),
    of("torch", "a NamedTuple", Named, getattr),
    of("torch", "a frozen dataclass", Record, getattr),
    of("torch", "a SimpleNamespace", mapping(lambda found: SimpleNamespace(**found)), getattr),
    of("attrs", "a frozen class", of_attrs, getattr),
    of("tensordict", "TensorDict", tensor_dict),
    of("tensordict", "tensorclass", tensor_class, getattr),
    of("transformers", "BatchEncoding", mapping(encoding), note="its to() moves the batch itself"),
    of("transformers", "ModelOutput", mapping(model_output)),
]
