"""The files that a stem's tensors are in: one, or several pieces."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

_PIECE: Final = re.compile(r"-(\d{5,9})\.safetensors")


def file_of(stem: str, number: int) -> str:
    """Name of a piece; number 0 is what changes, all others stay as they are."""
    return f"{stem}-{number:05d}.safetensors"


def number_of(stem: str, name: str) -> int:
    """The number of a stem's piece; 0 also for a file that is none."""
    found = _PIECE.fullmatch(name.removeprefix(stem))
    return int(found[1]) if found else 0


def files_of(manifest: Mapping[str, Any], stem: str) -> list[str]:
    """The files of a checkpoint that hold the tensors of a stem."""
    split: Sequence[str] = manifest.get("split", {}).get(stem, ())
    name = f"{stem}.safetensors"
    return [*split] or [name for name in (name,) if name in manifest["files"]]


def stems_of(manifest: Mapping[str, Any]) -> list[str]:
    """The stems of a checkpoint's files, whether they are in pieces or not."""
    split: Mapping[str, Sequence[str]] = manifest.get("split", {})
    pieces = {name for names in split.values() for name in names}
    whole = (name.rpartition(".")[0] for name in manifest["files"] if name not in pieces)
    return list(dict.fromkeys([*whole, *split]))


def is_piece(stem: str, other: str) -> bool:
    """Whether the file of another stem has the name of a piece of this one."""
    return other.startswith(stem) and bool(_PIECE.fullmatch(f"{other}.safetensors"[len(stem) :]))


def index_of(where: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What Hugging Face's tools read in ``<stem>.safetensors.index.json``.

    Args:
        where: name of each tensor to its file.
        tensors: all of them.
    """
    size = sum(tensor.nbytes for tensor in tensors.values())
    return {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}


def fault_of(split: object, files: Mapping[str, Any]) -> str:
    """What is wrong with the field ``split`` of a manifest; empty if nothing is."""
    if not isinstance(split, dict):
        return "no usable field 'split'"
    named: list[str] = []
    for stem, names in split.items():
        if not isinstance(names, list) or not names or f"{stem}.safetensors" in files:
            return f"no usable pieces of {stem!r:.100}"
        if not all(isinstance(n, str) and n in files for n in names):
            return f"a piece of {stem!r:.100} is not among its files"
        named += names
    return "" if len(named) == len(set(named)) else "a file is a piece of two"
