"""Python's and numpy's random states as they lie in memory, for a fence that is put up often.

To ask numpy for its state takes 30 us, and Python for its own 10. Both are 625 numbers in one piece
of memory, which is copied in a fraction of that. Where it lies is found out with generators made
for it, whose states are known; where they do not show it (another Python, another numpy), the
states have to be asked for.
"""

from __future__ import annotations

import ctypes
import random
import struct
import sys
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

_WORDS: Final = 624
_BYTES: Final = (_WORDS + 1) * 4
_SECOND_BYTES: Final = 16
"""An int, whether there is a second number, and at the next eighth byte a double, which."""


class Copied(NamedTuple):
    """Two random states.

    Attributes:
        python: the place among the words, then the words.
        pythons_second: the second of two normal numbers, which the next one drawn will be, or None.
        numpy: the words, then the place among them.
        numpys_second: as Python's, in numpy's memory.
    """

    python: bytes
    pythons_second: float | None
    numpy: bytes
    numpys_second: bytes


class _Read(NamedTuple):
    """Three generators, which keep the memory alive, and views of it."""

    pythons: Any
    numpys: Any
    bits: Any
    python: memoryview
    numpy: memoryview
    numpys_second: memoryview


_last: list[_Read] = []


def copied() -> Copied | None:
    """Both states; None where they have to be asked for."""
    pythons: Any = getattr(random.getstate, "__self__", None)
    numpys: Any = getattr(np.random.get_state, "__self__", None)
    bits: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]
    read = _last[0] if _last else None
    is_same = read is not None and read.pythons is pythons and read.numpys is numpys
    if not is_same or read.bits is not bits:  # type: ignore[union-attr]
        read = _looked_up(pythons, numpys, bits)
        _last[:] = [] if read is None else [read]
    if read is None:
        return None
    return Copied(
        bytes(read.python), pythons.gauss_next, bytes(read.numpy), bytes(read.numpys_second)
    )


def put_back(state: Copied) -> None:
    """Puts back what is no longer as it was."""
    now = copied()
    if now is None or now[:2] != state[:2]:
        place, *words = memoryview(state.python).cast("I")
        random.setstate((random.Random.VERSION, (*words, place), state.pythons_second))
    if now is None or now[2:] != state[2:]:
        *words, place = memoryview(state.numpy).cast("I")
        has_second, second = struct.unpack("i4xd", state.numpys_second)
        np.random.set_state(
            {
                "bit_generator": "MT19937",
                "state": {"key": np.array(words, dtype=np.uint32), "pos": place},
                "has_gauss": has_second,
                "gauss": second,
            }
        )


def _looked_up(pythons: Any, numpys: Any, bits: Any) -> _Read | None:
    """Where these lie in memory, if they are what Python and numpy begin with."""
    is_known = type(pythons) is random.Random and type(numpys) is np.random.RandomState
    if not is_known or type(bits) is not np.random.MT19937:
        return None
    words, second = _place_in_python(), _place_in_numpy()
    if words is None or second is None:
        return None
    return _Read(
        pythons,
        numpys,
        bits,
        _memory(id(pythons) + words, _BYTES),
        _memory(bits.ctypes.state_address, _BYTES),
        _memory(id(numpys) + second, _SECOND_BYTES),
    )


def _memory(address: int, size: int) -> memoryview:
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


@cache
def _place_in_python() -> int | None:
    """Where in a generator of Python's its place among the words lies, before the words."""
    if sys.implementation.name != "cpython":  # elsewhere an id is no address
        return None
    known, places = random.Random(1), set()  # noqa: S311 - no secret is made of it
    for _ in range(2):
        *words, place = known.getstate()[1]
        memory = bytes(_memory(id(known), random.Random.__basicsize__))
        places.add(memory.find(struct.pack(f"{_WORDS + 1}I", place, *words)))
        known.random()
    return _only(places)


@cache
def _place_in_numpy() -> int | None:
    """Where in numpy's generator lies whether there is a second normal number, and then which."""
    if sys.implementation.name != "cpython":
        return None
    known: Any = np.random.RandomState(1)
    places = set()
    for has_second, second in ((1, 0.12345678901234567), (1, -98.765432109876543), (0, 7.7)):
        state = known.get_state(legacy=False) | {"has_gauss": has_second, "gauss": second}
        known.set_state(state)
        memory = bytes(_memory(id(known), np.random.RandomState.__basicsize__))
        found = memory.find(struct.pack("d", second)) - 8
        is_there = found > 0 and memory[found : found + 4] == struct.pack("i", has_second)
        places.add(found if is_there else -1)
    inner = known.get_state(legacy=False)["state"]
    words = _memory(known._bit_generator.ctypes.state_address, _BYTES)  # noqa: SLF001 - made here
    is_as_said = bytes(words) == struct.pack(f"{_WORDS + 1}I", *inner["key"], inner["pos"])
    return _only(places) if is_as_said else None


def _only(places: set[int]) -> int | None:
    (place,) = places if len(places) == 1 else (-1,)
    return place if place > 0 else None
