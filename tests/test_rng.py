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


@pytest.mark.parametrize("drawn_before", [0, 1, 2])
def test_the_second_of_two_normal_numbers_is_kept_too(drawn_before: int) -> None:
    np.random.seed(3)
    expected = np.random.normal(size=drawn_before + 3)
    np.random.seed(3)
    found = [*np.random.normal(size=drawn_before)]
    for count in (0, 1, 2):
        with fenced():
            np.random.normal(size=count)
        found.append(np.random.normal())
    assert found == list(expected)


def test_another_generator_of_numpys_is_fenced_too() -> None:
    kept = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(5))
        with fenced():
            inside = np.random.rand()
        assert np.random.rand() == inside
    finally:
        np.random.set_bit_generator(kept)
