"""How many samples a batch holds, whatever it is made of."""

from __future__ import annotations

from collections import UserDict, deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils import rnn
from torch.utils.data import default_collate

from hatbus.data.batch_size import samples_in

FOUR, SCALAR, EMPTY = torch.zeros(4, 2), torch.tensor(1.0), torch.zeros(0, 2)


def of(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def boxes(n: int) -> dict[str, torch.Tensor]:
    return {"boxes": of(n, 4), "labels": of(n)}


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Record:
    x: Any
    y: Any = None


class SaysIt:
    """A batch of another library that knows how many it holds."""

    def __init__(self, **said: Any) -> None:
        self.__dict__.update(said)


class Rows(UserDict[str, torch.Tensor]):
    """As a TensorDict: a mapping whose iteration gives rows, which cannot be hashed."""

    batch_size = torch.Size([7])

    def __iter__(self) -> Any:
        return iter([{}] * 7)

    def keys(self) -> Any:
        return self.data.keys()


def collated(*samples: Any) -> Any:
    return default_collate(list(samples))


BATCHES: dict[str, tuple[Any, int | None]] = {
    "a tensor": (FOUR, 4),
    "a pair": ((FOUR, of(4)), 4),
    "a pair of unlike lengths": ((FOUR, of(9)), 4),
    "a list of unlike tensors": ([FOUR, of(9)], 4),
    "words beside": ({"meta": ["a", "b", "c", "d"], "x": FOUR}, 4),
    "a size beside": ({"size": [480, 640], "x": FOUR}, 4),
    "a scalar beside": ({"scale": SCALAR, "x": FOUR}, 4),
    "nothing beside": (({}, [], None, {"deep": [SCALAR, FOUR]}), 4),
    "an empty one beside": ([EMPTY, FOUR], 4),
    "most of them": (({"anchors": of(5, 4), "x": FOUR}, of(4)), 4),
    "two views and targets": (([of(8, 3), of(8, 3)], of(8)), 8),
    "two views": ([of(8, 3), of(8, 3)], 8),
    "two views as mappings": ([{"ids": of(8, 3)}, {"ids": of(8, 3)}], 8),
    "two mappings and targets": (([{"ids": of(8, 3)}, {"ids": of(8, 3)}], of(8)), 8),
    "collated pairs": (collated((of(3), 1), (of(3), 2)), 2),
    "collated words": (collated(("a", of(3)), ("b", of(3)), ("c", of(3))), 3),
    "collated mappings": (collated({"x": of(3), "s": (1, 2)}, {"x": of(3), "s": (3, 4)}), 2),
    # samples of different lengths
    "a list of samples": (([of(100), of(3)], of(2)), 2),
    "a list of samples alone": ([of(100), of(3), of(7)], 3),
    "a list of samples in a tuple": (([of(100), of(3), of(7)],), 3),
    "a tuple of samples": (((of(100), of(3), of(7)), [1, 2, 3]), 3),
    "a mapping of lists": ({"x": [of(9, 2), of(5, 2)], "y": [of(9), of(5)]}, 2),
    "a mapping of a list": ({"x": [of(9, 2), of(5, 2), of(9, 2)]}, 3),
    "samples whose lengths meet the batch size": (([of(2), of(5)], of(2)), 2),
    "one sample": (([of(3, 9, 9)], of(1)), 1),
    "more samples than are looked at": (([of(n) for n in range(1, 40)], of(39)), 39),
    # detection
    "images and boxes": (([of(3, 9, 9)] * 4, [boxes(n) for n in (5, 1, 2, 7)]), 4),
    "images and boxes, as tuples": (((of(3, 9, 9),) * 2, (boxes(5), boxes(1))), 2),
    "images and as many boxes as channels": (([of(3, 9, 9)] * 2, [boxes(3)] * 2), 2),
    "images and targets": (([of(3, 9, 9)] * 5, of(5)), 5),
    "images and numbers": (([of(3, 9, 9), of(3, 8, 8)], [0, 1]), 2),
    "a list of pairs": ([(of(100), 0), (of(3), 1)], 2),
    "a list of mappings": ([{"image": of(3, 9, 9), **boxes(n)} for n in (5, 1, 2)], 3),
    "a list of pairs with boxes": ([(of(3, 9, 9), boxes(n)) for n in (5, 1)], 2),
    # other kinds
    "arrays": ((np.zeros((6, 2)), np.zeros(6)), 6),
    "words": (["a", "b", "c"], 3),
    "a namedtuple": (Pair(FOUR, of(9)), 4),
    "a dataclass": (Record([of(100), of(3)], of(2)), 2),
    "a list of dataclasses": ([Record(of(100), 1), Record(of(3), 2), Record(of(4), 0)], 3),
    "a namespace": (SimpleNamespace(x=FOUR), 4),
    "a mapping of ones own": (UserDict(x=FOUR), 4),
    "a deque": (deque([of(100), of(3)]), 2),
    "a packed sequence": ((rnn.pack_sequence([of(5), of(2), of(1)]), of(3)), 3),
    "a packed sequence alone": (rnn.pack_sequence([of(5), of(2)]), 2),
    "one that says torch.Size": (SaysIt(batch_size=torch.Size([7, 2])), 7),
    "one that says a number": (SaysIt(batch_size=7), 7),
    "graphs": ((SaysIt(num_graphs=7, x=of(90, 3)), of(7)), 7),
    "a TensorDict": (Rows(x=of(7, 2)), 7),
    "a TensorDict in a tuple": ((Rows(x=of(7, 2)), of(7)), 7),
    # none
    "empty tensors": ((EMPTY, of(0)), 0),
    "an empty tensor": (EMPTY, 0),
    "an empty tensor and a scalar": ([EMPTY, SCALAR], 0),
    "empty lists": (([], []), 0),
    "an empty list": ([], 0),
    "a list of empty samples": (([of(0), of(0)], of(2)), 2),
    "a scalar": (SCALAR, None),
    "a scalar in a mapping": (["a", {"scale": SCALAR}], None),
    "text": ("text", None),
    "an object": (object(), None),
    "an object and an empty list": ((object(), []), None),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_the_size_on_which_most_of_a_batch_agrees_counts(kind: str) -> None:
    batch, samples = BATCHES[kind]
    assert samples_in(batch) == samples
