"""How many samples a batch holds, whatever comes before the first tensor with a length."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hatbus.data.batch_size import samples_in

FOUR, SCALAR, EMPTY = torch.zeros(4, 2), torch.tensor(1.0), torch.zeros(0, 2)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (FOUR, 4),
        ((FOUR, torch.zeros(9)), 4),
        ({"meta": ["a", "b", "c", "d"], "x": FOUR}, 4),
        ({"scale": SCALAR, "x": FOUR}, 4),
        (({}, [], None, {"deep": [SCALAR, FOUR]}), 4),
        ([EMPTY, FOUR], 4),
        ([EMPTY, SCALAR], 0),
        (EMPTY, 0),
        (SCALAR, None),
        (["a", {"scale": SCALAR}], None),
        ("text", None),
    ],
)
def test_the_first_tensor_that_has_a_length_and_is_not_empty_counts(
    batch: Any, samples: int | None
) -> None:
    assert samples_in(batch) == samples
