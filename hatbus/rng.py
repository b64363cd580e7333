"""The random state of this process: taken, put back, and fenced off from what must not move it.

Python's, numpy's and torch's generators, and one per GPU that was used. Everything that watches a
run without being part of its training (validation, export, observers) belongs inside ``fenced``.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["capture", "fenced", "restore", "seed_all", "spread"]

RandomState = dict[str, Any]
_MT19937_BYTES: Final = 625 * 4
"""624 words and the place among them."""


def capture() -> RandomState:
    """The random state, made of what a checkpoint can hold."""
    state: RandomState = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: RandomState, *, but_numpys: bool = False) -> None:
    """Puts a captured state back; GPUs that are not here are left out.

    Args:
        state: from ``capture``.
        but_numpys: leave numpy's as it is.
    """
    random.setstate(state["python"])
    if not but_numpys:
        np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for index, one in enumerate(state.get("cuda", ())[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one, index)


def seed_all(seed: int) -> None:
    """Seeds python, numpy and torch's CPU generator; cheap enough to be done for every sample."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


def spread(rank: int) -> None:
    """From here on a process draws other random numbers than those of other ranks.

    They follow from the seed that was set last and the rank; the first rank's go on as they are.
    """
    if rank == 0:
        return
    text = f"{torch.initial_seed()} {rank}".encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
    seed_all(seed)
    torch.manual_seed(seed)  # on every device


@contextmanager
def fenced() -> Iterator[None]:
    """What draws random numbers in here leaves the random state outside as it was."""
    state, mark = capture(), _numpys_mark()
    try:
        yield
    finally:
        is_kept = mark is not None and mark == _numpys_mark() and not state["numpy"]["has_gauss"]
        restore(state, but_numpys=is_kept)


def _numpys_mark() -> bytes | None:
    """The memory of numpy's generator, which is read 60 times as fast as its state; or None.

    Beside it numpy may hold the second of two normal numbers, which is drawn without a change here.
    """
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if type(generator) is not np.random.MT19937:
        return None
    return ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
