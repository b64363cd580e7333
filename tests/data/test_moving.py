"""Batches of every kind are moved to the device, and keep their kind."""

from __future__ import annotations

import dataclasses
from collections import ChainMap, OrderedDict, UserDict, defaultdict, deque
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn.utils import rnn

from hatbus.data.moving import to_device

META = torch.device("meta")
HERE = torch.ones(2)


@dataclasses.dataclass
class Record:
    x: torch.Tensor
    name: str = "text"
    derived: torch.Tensor = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.derived = self.x + 1


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: torch.Tensor


class Pair(NamedTuple):
    x: torch.Tensor
    n: int = 1


class Rows(list[Any]):
    def __init__(self, rows: Any, source: str) -> None:
        super().__init__(rows)
        self.source = source


class Three(tuple[Any, ...]):
    __slots__ = ()


BATCHES: dict[str, tuple[Any, Any]] = {
    "dataclass": (Record(HERE), lambda b: [b.x, b.derived]),
    "frozen, with slots": (Frozen(HERE), lambda b: [b.x]),
    "dataclass in a mapping": ({"deep": [Record(HERE)]}, lambda b: [b["deep"][0].x]),
    "namedtuple": (Pair(HERE), lambda b: [b.x]),
    "namespace": (SimpleNamespace(x=HERE, deep=[HERE]), lambda b: [b.x, *b.deep]),
    "deque": (deque([HERE], maxlen=3), list),
    "set": ({HERE}, list),
    "frozenset": (frozenset([HERE]), list),
    "list of one's own": (Rows([HERE], "disk"), list),
    "tuple of one's own": (Three([HERE]), list),
    "what torch.max gives": (torch.max(torch.ones(2, 2), 0), list),
    "OrderedDict": (OrderedDict(x=HERE), lambda b: [b["x"]]),
    "UserDict": (UserDict(x=HERE), lambda b: [b["x"]]),
    "ChainMap": (ChainMap({"x": HERE}), lambda b: [b["x"]]),
    "mapping proxy": (MappingProxyType({"x": HERE}), lambda b: [b["x"]]),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_every_tensor_of_a_batch_is_moved_and_the_batch_keeps_its_kind(kind: str) -> None:
    batch, tensors = BATCHES[kind]
    there = to_device(batch, META)
    assert type(there) is type(batch)
    assert {one.device.type for one in tensors(there)} == {"meta"}
    assert {one.device.type for one in tensors(batch)} == {"cpu"}, "the given one is as it was"


def test_what_a_container_has_beside_its_items_comes_along() -> None:
    counted: Any = defaultdict(list, {"x": HERE})
    assert to_device(counted, META)["absent"] == []
    assert to_device(Rows([HERE], "disk"), META).source == "disk"
    assert to_device(deque([HERE], maxlen=3), META).maxlen == 3
    assert to_device(Record(HERE, "other"), META).name == "other"


def test_what_moves_itself_does_so() -> None:
    class Own:
        def __init__(self, values: torch.Tensor) -> None:
            self.values = values

        def to(self, device: Any) -> Own:
            return Own(self.values.to(device))

    packed = rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    sequence, own = to_device((packed, Own(HERE)), META)
    assert {sequence.data.device.type, own.values.device.type} == {"meta"}
    assert sequence.batch_sizes.tolist() == [2, 1, 1]


def test_what_holds_no_tensor_is_handed_on() -> None:
    thing = object()
    assert to_device((thing, "text", 3, Record), META) == (thing, "text", 3, Record)


def test_a_mapping_that_takes_items_and_no_update_is_moved() -> None:
    class Output(dict[str, Any]):
        """As an output of Transformers."""

        def update(self, *args: Any, **kwargs: Any) -> None:
            raise NotImplementedError

    moved = to_device(Output(x=HERE), META)
    assert type(moved) is Output
    assert moved["x"].device == META
