"""What is drawn inside a fence leaves no trace outside it."""

import random

import numpy as np
import pytest
import torch

from hatbus.rng import fenced


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize("fails", [False, True])
def test_draws_inside_a_fence_do_not_move_those_outside_even_after_an_error(fails: bool) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [draws(), draws()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    found = [draws()]
    try:
        with fenced():
            inside = draws()
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    found.append(draws())
    assert found == expected
    assert inside == expected[1]
