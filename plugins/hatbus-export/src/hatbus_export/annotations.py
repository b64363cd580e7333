"""Annotations of outputs: what a tensor means, said by its attribute ``annotation``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch

from hatbus.errors import SaveError

ATTRIBUTE: Final = "annotation"
FILE: Final = "annotations.json"


def flattened(outputs: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested outputs with its name: keys and indices joined by ``_``."""
    if isinstance(outputs, torch.Tensor):
        yield name or "output", outputs
        return
    pairs: Any = ()
    if isinstance(outputs, Mapping):
        pairs = outputs.items()
    elif isinstance(outputs, (tuple, list)):
        pairs = enumerate(outputs)
    for key, value in pairs:
        yield from flattened(value, f"{name}_{key}" if name else str(key))


def annotations_of(outputs: Any, *, allow_miss: bool) -> str:
    """The annotations of a model's outputs by flattened name, as JSON.

    Raises:
        SaveError: an output lacks its annotation and may not, or has one that JSON cannot hold.
    """
    tensors = dict(flattened(outputs))
    found = {n: getattr(t, ATTRIBUTE) for n, t in tensors.items() if hasattr(t, ATTRIBUTE)}
    missing = [name for name in tensors if name not in found]
    if missing and not allow_miss:
        raise SaveError(
            f"save_traced: outputs {', '.join(map(repr, missing))} have no {ATTRIBUTE!r}; set "
            f"`output.{ATTRIBUTE} = ...` in the model, or allow_anno_miss=True"
        )
    try:
        return json.dumps(found, sort_keys=True)
    except TypeError as error:
        raise SaveError(f"save_traced: an annotation is no JSON value: {error}") from error
