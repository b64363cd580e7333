"""Published values: plain before anybody sees them, and read as one number where one is wanted.

numpy's scalars and 0-d arrays (``np.mean``, scikit-learn) become Python numbers when they are
published, so that no sink, table, manifest or schedule has to know of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Final

import numpy as np
from torch import Tensor

from hatbus.errors import HookError, PluginError

_PLAIN: Final = frozenset({float, int, Tensor, str, bool})


def plain_values(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values, those that are one number in another library's form as Python's own."""
    for value in values.values():
        if type(value) not in _PLAIN:
            return {name: plain(one) for name, one in values.items()}
    return values


def plain(value: Any) -> Any:
    """One value; what is no single real number stays as it is, tensors too.

    >>> plain(np.float32(0.5)), plain(np.array([7])), plain(Decimal("0.25"))
    (0.5, 7, 0.25)
    """
    if type(value) in _PLAIN or isinstance(value, (Tensor, str)):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return _of_numpy(value)
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, (Real, Decimal)) else value


def one_number(name: str, value: Any) -> float:
    """A published value as a number; waits for its device.

    Args:
        name: who asks for what, to begin a message with.
        value: from ``ctx.latest`` or ``on_log``.

    Raises:
        PluginError: it is none, or several.
    """
    value = plain(value)
    is_several = isinstance(value, (Tensor, np.ndarray)) and math.prod(value.shape) != 1
    if is_several:
        raise PluginError(f"{name} has shape {tuple(value.shape)}; accepted: a single number")
    if isinstance(value, Tensor) and not value.is_complex():
        return float(value.item())
    if not isinstance(value, (int, float)):
        raise PluginError(f"{name} is {value!r:.80}; accepted: a single number")
    return float(value)


def _of_numpy(value: Any) -> Any:
    if value.size != 1:
        return value
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        return math.nan
    kind = value.dtype.kind
    one = value.reshape(())
    if kind == "b":
        return bool(one)
    if kind in "iu":
        return int(one)
    try:
        return float(one) if kind in "fV" else value  # V: bfloat16 and other new kinds
    except (TypeError, ValueError):
        return value


def note_kind(known: dict[str, set[str]], names: Iterable[str], kind: str) -> None:
    """Notes in which kind names are published.

    Args:
        known: kind to names, of what was published before; the names are added.
        names: that are published now.
        kind: of them.

    Raises:
        HookError: one was published in another kind.
    """
    for other, theirs in known.items():
        both = theirs.intersection(names) if other != kind else ()
        for name in both:
            raise HookError(
                f"{name!r} is published as {kind!r}, and was as {other!r}; give one of "
                "them another name: TensorBoard and others show one kind under a name"
            )
    known.setdefault(kind, set()).update(names)
