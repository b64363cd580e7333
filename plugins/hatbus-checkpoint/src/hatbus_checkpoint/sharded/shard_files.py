"""The files of parts, ``rank-3/model.safetensors``: a header says where in the whole each lies."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hatbus.errors import CheckpointError
from hatbus_checkpoint import tensor_file
from hatbus_checkpoint.parts import Box, Parts

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import torch

PLACES: Final = "places"
"""Key of a file's metadata: JSON, tensor name to ``[type, shape, offset, size, placements]``.

Also of the parts that are in another process's file, where several have the same.
"""
OWN: Final = "own"
"""Folder, in that of a process, of state that is another on it than on the first."""
_OF_RANK: Final = re.compile(r"rank-(\d+)/(.+)\.(safetensors|json)")


def folder_of(rank: int) -> str:
    """Where a process puts what it alone has."""
    return f"rank-{rank}"


def is_of_rank(name: str) -> bool:
    """Whether a file lies in the folder of a process."""
    return _OF_RANK.fullmatch(name) is not None


def ranks_with(stem: str, files: Iterable[str]) -> list[int]:
    """The processes that wrote parts of a stem, such as ``"model"``."""
    found = (_OF_RANK.fullmatch(name) for name in files)
    return sorted(int(m[1]) for m in found if m and m[2] == stem and m[3] == "safetensors")


class _Part(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    box: Box
    placements: tuple[str, ...]
    is_here: bool


class ShardFiles:
    """The parts of one stem of a checkpoint; a file is opened when something in it is asked for.

    Args:
        folder: the checkpoint.
        stem: such as ``"optim"``.
        ranks: the processes that wrote parts of it.
        rank: this process, whose own file is looked at first; None: it has none.
    """

    def __init__(self, folder: Path, stem: str, ranks: list[int], rank: int | None) -> None:
        self._folder, self._stem, self._ranks = folder, stem, ranks
        self._rank = rank if rank in ranks else None
        self._headers: dict[int, dict[str, _Part]] = {}
        self._tensors: dict[int, dict[str, torch.Tensor]] = {}

    def parts(self) -> dict[str, Parts]:
        """Every tensor that is there in parts."""
        found: dict[str, Parts] = {}
        for rank in self._ranks if self._rank is None else [self._rank]:
            for key, part in self._header(rank).items():
                if key not in found:
                    found[key] = Parts(key, part.shape, part.dtype, part.placements, self)
        return found

    def own(self, key: str, box: Box) -> torch.Tensor | None:
        """The very box, if this process has written it."""
        if self._rank is None:
            return None
        part = self._header(self._rank).get(key)
        is_own = part is not None and part.is_here and part.box == box
        return self.read(key, self._rank) if is_own else None

    def boxes(self, key: str) -> list[tuple[Box, int]]:
        """The parts of a tensor that there are, each with the process that wrote it."""
        return self._boxes.get(key, [])

    def read(self, key: str, rank: int) -> torch.Tensor:
        """A process's part, mapped from its file."""
        return self._of(rank)[key]

    @cached_property
    def _boxes(self) -> dict[str, list[tuple[Box, int]]]:
        found: dict[str, list[tuple[Box, int]]] = {}
        for rank in self._ranks:
            for key, part in self._header(rank).items():
                if part.is_here:
                    found.setdefault(key, []).append((part.box, rank))
        return found

    def _path(self, rank: int) -> Path:
        return self._folder / folder_of(rank) / f"{self._stem}.safetensors"

    def _header(self, rank: int) -> dict[str, _Part]:
        if rank not in self._headers:
            path = self._path(rank)
            try:
                self._headers[rank] = _header_of(path)
            except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
                raise CheckpointError(
                    f"{folder_of(rank)}/{path.name} of {self._folder.name!r} is garbled: "
                    f"{error!s:.200}"
                ) from error
        return self._headers[rank]

    def _of(self, rank: int) -> dict[str, torch.Tensor]:
        if rank not in self._tensors:
            self._tensors[rank] = tensor_file.read(self._path(rank))
        return self._tensors[rank]


def _header_of(path: Path) -> dict[str, _Part]:
    with path.open("rb") as file:
        header: Any = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    places = json.loads(header.pop(tensor_file.RESERVED)[PLACES])
    found = {}
    for key, (kind, shape, offset, size, placements) in places.items():
        if not len(shape) == len(offset) == len(size):
            raise ValueError(f"{key!r} has no place")
        box = Box(tuple(map(int, offset)), tuple(map(int, size)))
        whole, how = tuple(map(int, shape)), tuple(map(str, placements))
        found[key] = _Part(tensor_file.DTYPES[kind], whole, box, how, key in header)
    return found
