"""What ``hatbus.data.loader`` cannot use is refused in one line that says what can be done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset, SequentialSampler, TensorDataset

from hatbus.data import loader
from hatbus.errors import DataError

ROWS = TensorDataset(torch.arange(8.0))


class Stream(IterableDataset[Any]):
    """A stream that says how long it is."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[int]:
        return iter(range(8))


@pytest.mark.parametrize(
    ("dataset", "options", "said"),
    [
        (Stream(), {}, "Stream gives its samples one after the other"),
        (iter([1]), {}, "list_iterator gives its samples one after the other"),
        (ROWS, {"batch_size": None}, "batch_size is None; accepted: 1 or more; if every item"),
        (ROWS, {"batch_size": 0}, "batch_size is 0; accepted: 1 or more"),
        (ROWS, {"batch_size": 2.0}, r"batch_size is 2\.0; accepted: 1 or more"),
        (ROWS, {"batch_size": True}, "batch_size is True; accepted: 1 or more"),
        (ROWS, {"num_workers": -1}, "num_workers is -1; accepted: 0 or more"),
        (ROWS, {"num_workers": None}, "num_workers is None; accepted: 0 or more"),
        (ROWS, {"seed": "x"}, "seed is 'x'; accepted: a whole number, or None"),
        (ROWS, {"sampler": SequentialSampler(ROWS)}, "takes no sampler=; with one, give the run"),
        (ROWS, {"generator": torch.Generator()}, "takes no generator="),
        (ROWS, {"in_order": False, "num_workers": 2}, "in_order=False lets the workers race"),
        (ROWS, {"num_worker": 2}, "unknown option 'num_worker'"),
        (ROWS, {"pin_memry": True}, "unknown option 'pin_memry'; did you mean 'pin_memory'"),
        (ROWS, {"persistent_workers": True}, "torch's DataLoader refuses .*: persistent_workers"),
        (ROWS, {"timeout": -1}, "torch's DataLoader refuses .*: timeout"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused_in_one_line(
    dataset: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        loader(dataset, **{"batch_size": 2, **options})
    assert "\n" not in str(caught.value)


def test_options_of_torch_are_handed_on() -> None:
    data = loader(ROWS, 2, num_workers=1, prefetch_factor=3, sampler=None, in_order=True)
    assert (data.prefetch_factor, len(data)) == (3, 4)
