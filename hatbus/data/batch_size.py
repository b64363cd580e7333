"""How many samples a batch holds.

A batch says it in several places: the first dimension of its tensors, the length of its lists. The
size on which most of them agree counts::

    (x[8, 3], y[8])                        8
    {"anchors": a[5, 4], "x": x[8, 3]}, y[8]   8: two of three say so
    [x[100], x[3], x[7]], y[3]             3: samples of different lengths, so the list's length
    [image[3, 9, 9]] * 4, [boxes] * 4      4: lists of one length, of images and of mappings
    [view[8, 3], view[8, 3]], y[8]         8: two views of 8 samples
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

import numpy as np
from torch import Size, Tensor
from torch.nn.utils.rnn import PackedSequence

from hatbus.data.moving import fields_of

Votes = dict[int, int]
"""Size to how much speaks for it, in the order found."""
_LOOKED_AT: Final = 8
"""Elements of a list whose sizes are compared."""
_PLAIN: Final = (tuple, list)
_SEQUENCES: Final = (list, tuple, deque, set, frozenset)
_SURE, _RECORDS, _SAMPLES, _TENSOR, _HINT = 9, 4, 3, 2, 1


def samples_in(batch: Any) -> int | None:
    """Samples in a batch; 0 if it is empty, None if nothing in it has a length.

    Looks at tensors and arrays, into mappings, tuples, lists, dataclasses and their like. What says
    itself how many it holds (``batch_size`` of a TensorDict, ``num_graphs`` of a graph batch, a
    packed sequence) is believed. Of sizes that as much speaks for, the first counts. Only sizes are
    read, never values, so nothing waits for the device.
    """
    plain = _of_equal_tensors(batch)
    if plain:
        return plain
    votes = _votes(batch, is_top=True)
    if not votes:
        return 0 if _holds_nothing(batch) else None
    sizes = {size: votes[size] for size in votes if size} or votes
    return max(sizes, key=lambda size: sizes[size])


def _of_equal_tensors(batch: Any) -> int:
    """The size of what most batches are, found without asking further; else 0."""
    parts = batch.values() if type(batch) is dict else batch if type(batch) in _PLAIN else ()
    found = -1
    for part in parts:
        if type(part) is not Tensor or not part.dim():
            return 0
        size = part.size(0)
        if size != found != -1:
            return 0
        found = size
    return max(found, 0)


def _votes(part: Any, *, is_top: bool = False) -> Votes:
    if isinstance(part, (Tensor, np.ndarray)):
        return {int(part.shape[0]): _TENSOR} if part.ndim else {}
    if isinstance(part, PackedSequence):
        return {int(part.batch_sizes[0]): _SURE}  # which is on the host always
    said = _said(part)
    if said is not None:
        return {said: _SURE}
    if isinstance(part, Mapping):
        return _all_of([_votes(one) for one in part.values()])
    if isinstance(part, _SEQUENCES):
        return _of_sequence(part, is_top=is_top) if len(part) else {}
    return _all_of([_votes(one) for one in (fields_of(part) or {}).values()])


def _of_sequence(part: Any, *, is_top: bool) -> Votes:
    some = list(islice(part, _LOOKED_AT))
    kinds = {_kind(one) for one in some}
    if all(isinstance(one, (str, bytes, int, float)) for one in some):
        return {len(part): _HINT} if len(kinds) == 1 else {}
    each = [_votes(one) for one in some]
    if hasattr(part, "_fields") or (is_top and isinstance(part, tuple)):
        return _all_of(each)
    best = [max(votes, key=lambda size: votes[size]) for votes in each if any(votes)]
    if any(each) and not best:
        return {0: _TENSOR}
    if len(kinds) > 1 or (not best and isinstance(some[0], (Tensor, np.ndarray))):
        return _all_of(each)
    if len(set(best)) == 1:
        length = _HINT if is_top else _length_weight(some)
        inside = _HINT if length == _SAMPLES else _TENSOR
        return _all_of([{best[0]: inside}, {len(part): length}])
    return dict.fromkeys(best, _HINT) | {len(part): _SAMPLES}


def _length_weight(some: list[Any]) -> int:
    """How much speaks for the length of a list whose elements are of one size, and of one kind."""
    if isinstance(some[0], Mapping):
        return _RECORDS
    shapes = {getattr(one, "shape", None) for one in some}
    are_images = len(shapes) > 1 and some[0].ndim == 3
    return _SAMPLES if are_images else _HINT


def _all_of(each: list[Votes]) -> Votes:
    found: Votes = {}
    for votes in each:
        for size, weight in votes.items():
            found[size] = found.get(size, 0) + weight
    return found


def _kind(part: Any) -> Any:
    if isinstance(part, (Tensor, np.ndarray)):
        return "tensor", part.ndim, part.dtype
    if isinstance(part, Mapping):
        return "mapping", frozenset(part.keys())  # a TensorDict's own iteration gives rows
    if isinstance(part, (list, tuple)):
        return type(part), len(part)
    return type(part)


def _said(part: Any) -> int | None:
    """What a batch of a class that knows its size says."""
    if isinstance(part, (list, tuple, dict, str)):
        return None
    size = getattr(part, "batch_size", None)
    if isinstance(size, Size):
        return size[0] if size else None
    for one in (size, getattr(part, "num_graphs", None)):
        if isinstance(one, int) and not isinstance(one, bool):
            return one
    return None


def _holds_nothing(batch: Any) -> bool:
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return isinstance(batch, _SEQUENCES) and all(map(_holds_nothing, batch))
