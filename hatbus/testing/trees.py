"""State trees: copied, and compared bit for bit with the place of the first difference named."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import PurePath
from typing import Any, Final

import numpy as np
import torch

from hatbus.testing.verdict import fail

_SIMPLE: Final = (bool, int, float, str, bytes, type(None), PurePath)
ACCEPTED: Final = (
    "accepted: dict, list, tuple, set, str, bytes, int, float, bool, None, tensors, numpy arrays"
)


def copied(tree: Any, where: str) -> Any:
    """A copy that shares nothing with the tree.

    Raises:
        ContractFailure: something in it cannot be stored in a checkpoint.
    """
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone()
    if isinstance(tree, (np.ndarray, np.generic)):
        return tree.copy()
    if type(tree) in (dict, OrderedDict):
        return type(tree)((k, copied(v, f"{where}[{k!r}]")) for k, v in tree.items())
    if type(tree) in (list, tuple, set, frozenset, torch.Size):
        return type(tree)(copied(v, f"{where}[{i}]") for i, v in enumerate(tree))
    if isinstance(tree, _SIMPLE):
        return tree
    return fail(f"{where} is a {type(tree).__module__}.{type(tree).__qualname__}; {ACCEPTED}")


def without(tree: Any, patterns: Sequence[str]) -> Any:
    """A tree of dicts less the keys that match one of the patterns."""
    if not isinstance(tree, dict):
        return tree
    return {
        key: without(value, patterns)
        for key, value in tree.items()
        if not any(fnmatch(str(key), pattern) for pattern in patterns)
    }


def difference(one: Any, other: Any, where: str = "") -> str:
    """Where two trees first differ, and how; empty when every bit is the same."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return _tensors(one, other, where)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        same = one.dtype == other.dtype and one.tobytes() == other.tobytes()
        return "" if same else f"{where} differs"
    if isinstance(one, dict) and isinstance(other, dict):
        return _dicts(one, other, where)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return f"{where} has {len(one)} items in one, {len(other)} in the other"
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (difference(a, b, f"{where}[{i}]") for i, (a, b) in pairs)), "")
    same = one == other or (one != one and other != other)  # noqa: PLR0124 - NaN is equal to NaN here
    return "" if same else f"{where} is {one!r:.100} in one, {other!r:.100} in the other"


def _dicts(one: dict[Any, Any], other: dict[Any, Any], where: str) -> str:
    for key in (*one, *(k for k in other if k not in one)):
        if key not in one or key not in other:
            return f"{where}[{key!r}] is in one of them only"
    found = (difference(one[key], other[key], f"{where}[{key!r}]") for key in one)
    return next(filter(None, found), "")


def _tensors(one: torch.Tensor, other: torch.Tensor, where: str) -> str:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        kinds = (f"{t.dtype} {tuple(t.shape)}" for t in (one, other))
        return f"{where} is {' in one, '.join(kinds)} in the other"
    if torch.equal(one, other) or torch.equal(
        torch.nan_to_num(one.double()), torch.nan_to_num(other.double())
    ):
        return ""
    largest = float((one.double() - other.double()).abs().max())
    return f"{where} differs by up to {largest:.3g}"
