"""A tensor in parts is what the parts make up, or is refused."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from hatbus.errors import CheckpointError
from hatbus_checkpoint.parts import Box, Parts, is_tiled

WHOLE = torch.arange(60.0).reshape(5, 4, 3)


class Held:
    """Parts that are in memory; the first process's own are looked at first."""

    def __init__(self, boxes: list[Box]) -> None:
        self.all = boxes
        self.reads = 0

    def own(self, key: str, box: Box) -> torch.Tensor | None:
        return self.read(key, 0) if self.all and self.all[0] == box else None

    def boxes(self, key: str) -> list[tuple[Box, int]]:
        return [(box, rank) for rank, box in enumerate(self.all)]

    def read(self, key: str, rank: int) -> torch.Tensor:
        self.reads += 1
        return self.all[rank].of(WHOLE, (0, 0, 0))


def parts(boxes: list[Box]) -> Parts:
    return Parts("w", WHOLE.shape, WHOLE.dtype, ("S0",), Held(boxes))


def grid(*cuts: list[int]) -> list[Box]:
    """Boxes between cuts along every dimension."""
    edges = [list(itertools.pairwise(one)) for one in cuts]
    found = itertools.product(*edges)
    return [Box(tuple(a for a, _ in one), tuple(b - a for a, b in one)) for one in found]


GRIDS = {
    "rows": grid([0, 2, 4, 5], [0, 4], [0, 3]),
    "some of none": grid([0, 3, 5, 5], [0, 4], [0, 3]),
    "columns": grid([0, 5], [0, 1, 4], [0, 3]),
    "blocks": grid([0, 3, 5], [0, 2, 4], [0, 1, 3]),
    "one": grid([0, 5], [0, 4], [0, 3]),
}


@pytest.mark.parametrize("name", GRIDS)
def test_any_box_is_read_from_any_parts(name: str) -> None:
    chance = random.Random(name)
    boxes = GRIDS[name] * 2  # replicas
    chance.shuffle(boxes)
    for _ in range(50):
        ends = [sorted(chance.choices(range(n + 1), k=2)) for n in WHOLE.shape]
        box = Box(tuple(a for a, _ in ends), tuple(b - a for a, b in ends))
        assert parts(boxes).box(box).equal(box.of(WHOLE, (0, 0, 0)))
    assert parts(boxes).whole().equal(WHOLE)
    assert parts(boxes).to(torch.float64).whole().equal(WHOLE.double())


def test_the_very_box_that_this_process_wrote_is_not_copied() -> None:
    boxes = GRIDS["rows"]
    found = parts(boxes).box(boxes[0])
    assert found.data_ptr() == WHOLE.data_ptr()


@pytest.mark.parametrize("name", ["rows", "columns", "blocks"])
def test_a_hole_or_an_overlap_is_refused(name: str) -> None:
    boxes = GRIDS[name]
    assert is_tiled(boxes, WHOLE.shape)
    moved = [Box((*boxes[-1].offset[:2], 0), boxes[-1].size), *boxes[:-1]]
    shifted = [boxes[0]._replace(offset=boxes[-1].offset), *boxes[1:]]
    for wrong in (boxes[1:], [*boxes[1:], boxes[-1]._replace(size=(1, 1, 1))], shifted):
        assert not is_tiled(wrong, WHOLE.shape)
        with pytest.raises(CheckpointError, match="do not make up"):
            parts(wrong).whole()
    assert is_tiled(moved, WHOLE.shape) == (moved[0] == boxes[-1])


def test_a_single_number_is_one_part() -> None:
    assert is_tiled([Box((), ())], ())
    assert not is_tiled([], ())
