"""The random state of this process: taken, put back, and fenced off from what must not move it.

Python's, numpy's and torch's generators, and one per GPU that was used. Everything that watches a
run without being part of its training (validation, export, observers) belongs inside ``fenced``.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hatbus import rng_memory

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["capture", "fenced", "restore", "seed_all", "spread"]

RandomState = dict[str, Any]


def capture() -> RandomState:
    """The random state, made of what a checkpoint can hold."""
    pythons, numpys = random.getstate(), np.random.get_state(legacy=False)
    return {"python": pythons, "numpy": numpys, **_torchs()}


def restore(state: RandomState) -> None:
    """Puts a captured state back; GPUs that are not here are left out.

    Args:
        state: from ``capture``.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    _restore_torchs(state)


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


def fenced() -> AbstractContextManager[None]:
    """What draws random numbers in here leaves the random state outside as it was."""
    return _Fence()


class _Fence:
    """The context of ``fenced``; no generator, as a validation enters it on every occasion."""

    __slots__ = ("_copied", "_state")

    def __enter__(self) -> None:
        self._copied = rng_memory.copied()
        self._state = _torchs() if self._copied is not None else capture()

    def __exit__(self, *error: object) -> None:
        if self._copied is None:
            restore(self._state)
        else:
            rng_memory.put_back(self._copied)
            _restore_torchs(self._state)


def _torchs() -> RandomState:
    """The states of torch's generators."""
    state: RandomState = {"torch": torch.default_generator.get_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _restore_torchs(state: RandomState) -> None:
    torch.default_generator.set_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        for index, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one, index)
