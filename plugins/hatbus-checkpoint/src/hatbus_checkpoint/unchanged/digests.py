"""Hashes that tell whether a tensor is the one that it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

import torch
import xxhash

from hatbus_checkpoint.tensor_file import as_bytes

_SAMPLED: Final = 512
"""About so many elements are a sample."""
_THREADS: Final = min(4, os.cpu_count() or 1)
"""Memory is what limits the hash, and few threads are enough to use it up."""
_Key = TypeVar("_Key")


def sample(tensor: torch.Tensor) -> bytes:
    """A hash of elements on a grid: other samples mean other tensors, equal ones nothing.

    It costs next to nothing, and training that changes a tensor nearly always changes it there.
    """
    shape, plain = tensor.shape, tensor.detach()
    if plain.element_size() == 1:  # torch copies no parts of some of the small types
        plain = plain.view(torch.uint8)
    along = max(1, round(_SAMPLED ** (1 / max(1, len(shape)))))
    grid = tuple(slice(None, None, max(1, size // along)) for size in shape)
    return _hash(tensor, plain[grid])


def whole(tensor: torch.Tensor) -> bytes:
    """A hash of type, shape and every byte (128 bits of XXH3): equal ones mean equal tensors."""
    return _hash(tensor, tensor)


def all_whole(tensors: Mapping[_Key, torch.Tensor]) -> dict[_Key, bytes]:
    """The same of many, in threads."""
    with begun_whole(tensors) as found:
        return found()


@contextmanager
def begun_whole(
    tensors: Mapping[_Key, torch.Tensor],
) -> Iterator[Callable[[], dict[_Key, bytes]]]:
    """The same, of which threads do the work meanwhile: gives what waits for it."""
    waiting = iter(sorted(tensors, key=lambda key: -tensors[key].nbytes))

    def work() -> dict[_Key, bytes]:
        return {key: whole(tensors[key]) for key in waiting}

    with ThreadPoolExecutor(_THREADS) as pool:
        shares = [pool.submit(work) for _ in range(min(_THREADS, len(tensors)))]
        yield lambda: {key: found for share in shares for key, found in share.result().items()}


def _hash(tensor: torch.Tensor, elements: torch.Tensor) -> bytes:
    found = xxhash.xxh3_128(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if elements.numel():
        found.update(as_bytes(elements))
    return found.digest()
