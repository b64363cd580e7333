"""A tensor of which every process has written its part, and boxes in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from hatbus.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Box(NamedTuple):
    """A part of a tensor: where it begins and how long it is, in every dimension."""

    offset: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Its elements."""
        return math.prod(self.size)

    def within(self, other: Box) -> Box:
        """What both have, in the places of the whole tensor; perhaps nothing."""
        begin = tuple(map(max, self.offset, other.offset))
        ends = zip(self.offset, self.size, other.offset, other.size, strict=True)
        size = (min(a + n, b + m) for a, n, b, m in ends)
        return Box(begin, tuple(max(end - at, 0) for end, at in zip(size, begin, strict=True)))

    def of(self, tensor: torch.Tensor, start: Sequence[int]) -> torch.Tensor:
        """This box of a tensor that begins at ``start`` itself; not a copy."""
        for dim, (at, begin, size) in enumerate(zip(self.offset, start, self.size, strict=True)):
            tensor = tensor.narrow(dim, at - begin, size)
        return tensor


class Source(Protocol):
    """Where parts are read from."""

    def own(self, key: str, box: Box) -> torch.Tensor | None:
        """The very box, if this process has written it."""

    def boxes(self, key: str) -> list[tuple[Box, int]]:
        """The parts of a tensor that there are, each with the process that wrote it."""

    def read(self, key: str, rank: int) -> torch.Tensor:
        """A process's part, mapped from its file."""


class Parts:
    """A tensor in parts, of which nothing is read before it is asked for.

    Args:
        key: its name in the files.
        shape: of the whole.
        dtype: its type.
        placements: how it was spread: ``"S0"``, ``"R"`` and so on, one per dimension of the mesh.
        source: of the parts.
    """

    def __init__(
        self,
        key: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        placements: Sequence[str],
        source: Source,
    ) -> None:
        self.key, self.shape, self.dtype = key, torch.Size(shape), dtype
        self.placements, self._source = tuple(placements), source
        self._read_as = dtype

    def numel(self) -> int:
        """Elements of the whole."""
        return math.prod(self.shape)

    def element_size(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    def to(self, dtype: torch.dtype) -> Parts:
        """The same, of another type when it is read."""
        found = Parts(self.key, self.shape, dtype, self.placements, self._source)
        found._read_as = self._read_as
        return found

    def box(self, box: Box) -> torch.Tensor:
        """A box of it; mapped from the file where this process wrote the very same, else new.

        Raises:
            CheckpointError: the parts that there are do not make it up.
        """
        found = self._source.own(self.key, box)
        if found is None:
            found = self._joined(box)
        return found.to(self.dtype)

    def whole(self) -> torch.Tensor:
        """All of it."""
        return self.box(Box((0,) * len(self.shape), tuple(self.shape)))

    def _joined(self, wanted: Box) -> torch.Tensor:
        parts = dict(reversed(self._source.boxes(self.key)))  # replicas are one
        if not is_tiled(list(parts), self.shape):
            raise CheckpointError(f"the parts of {self.key!r} do not make up {tuple(self.shape)}")
        found = torch.empty(wanted.size, dtype=self._read_as)
        for box, rank in parts.items():
            common = wanted.within(box)
            if common.numel:
                part = common.of(self._source.read(self.key, rank), box.offset)
                common.of(found, wanted.offset).copy_(part)
        return found


def is_tiled(boxes: Sequence[Box], shape: Sequence[int]) -> bool:
    """Whether boxes cover a shape, every element once."""
    filled = sorted(box for box in boxes if box.numel)
    whole = Box((0,) * len(shape), tuple(shape))
    if sum(box.numel for box in filled) != whole.numel:
        return False
    if any(box.within(whole) != box for box in filled):
        return False
    for place, box in enumerate(filled):
        for other in filled[place + 1 :]:
            if shape and other.offset[0] >= box.offset[0] + box.size[0]:
                break  # sorted: so are all that come
            if box.within(other).numel:
                return False
    return True


def box_of(tensor: torch.Tensor | Parts, box: Box) -> torch.Tensor:
    """A box of a tensor, or of one in parts."""
    if isinstance(tensor, Parts):
        return tensor.box(box)
    return box.of(tensor, (0,) * len(box.offset))


def whole_of(tensor: torch.Tensor | Parts) -> torch.Tensor:
    """All of a tensor that may be in parts."""
    return tensor.whole() if isinstance(tensor, Parts) else tensor
