"""What is drawn inside a fence leaves no trace outside it."""

import random

import numpy as np
import pytest
import torch

from hatbus import rng_memory
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


def states() -> tuple[object, ...]:
    """Everything there is of Python's and numpy's states."""
    of_numpy = np.random.get_state(legacy=False)
    words = of_numpy["state"]
    second = of_numpy["has_gauss"], of_numpy["gauss"]
    return random.getstate(), words["key"].tobytes(), words["pos"], *second


@pytest.mark.parametrize("drawn_before", [0, 1, 700, 1401])
def test_a_copied_state_is_put_back_to_the_last_number(drawn_before: int) -> None:
    random.seed(4), np.random.seed(4)
    for _ in range(drawn_before):
        random.gauss(0, 1), np.random.normal()
    before, copied = states(), rng_memory.copied()
    assert copied is not None  # of this Python and this numpy
    for draw in (np.random.rand, random.random, np.random.normal, lambda: random.gauss(0, 1)):
        draw()
        assert states() != before
        rng_memory.put_back(copied)
        assert states() == before


def test_where_the_memory_does_not_show_it_the_states_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rng_memory, "_last", [])
    monkeypatch.setattr(rng_memory, "_place_in_numpy", lambda: None)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    np.random.normal()
    before = states()
    with fenced():
        assert rng_memory.copied() is None
        draws(), np.random.normal(), random.gauss(0, 1)
    assert states() == before


def test_a_generator_that_is_put_in_while_fenced_does_not_stay() -> None:
    np.random.seed(2)
    kept, before = np.random.get_bit_generator(), states()
    try:
        with fenced():
            np.random.set_bit_generator(np.random.MT19937(5))
            np.random.rand()
        assert states() == before
    finally:
        np.random.set_bit_generator(kept)
