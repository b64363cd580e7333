"""Whether the trained weights in a checkpoint are finite, read from its files without torch.

A run looks at its weights before it saves, and its manifest says so (``"finite"``). A checkpoint of
an older version may hold weights that a finite loss with a NaN gradient spoilt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from hatbus.errors import CheckpointError
from hatbus_checkpoint import manifest, pieces

if TYPE_CHECKING:
    import numpy as np

_EXPONENTS: Final = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "C64": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""Element types, each as whole numbers, and the bits that are all set in a NaN or an infinity."""
_OF_A_RANK: Final = re.compile(r"rank-\d+/model\.safetensors")
_AT_ONCE: Final = 1 << 20


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are right, and whose weights are finite.

    Raises:
        CheckpointError: the first thing that is wrong.
    """
    found = manifest.verify(folder)
    check(folder, found)
    return found


def check(folder: Path, found: Mapping[str, Any]) -> None:
    """Refuses a checkpoint whose weights are not finite.

    Args:
        folder: the checkpoint.
        found: its manifest.

    Raises:
        CheckpointError: which are not.
    """
    name = "" if found.get("finite") is True else first_bad(folder, found)
    if name:
        raise CheckpointError(f"its parameter {name!r} is not finite: the run had gone wrong")


def first_bad(folder: Path, found: Mapping[str, Any]) -> str:
    """The first parameter of the optimizer that is NaN or infinite; empty if all are finite."""
    if "optim.json" not in found["files"]:
        return ""
    try:
        groups = json.loads((folder / "optim.json").read_bytes())["groups"]
        trained = {name for group in groups for name in group["params"]}
        of_ranks = filter(_OF_A_RANK.fullmatch, found["files"])
        names = [*pieces.files_of(found, "model"), *of_ranks]
        return next(filter(None, (_first_bad_in(folder / name, trained) for name in names)), "")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""  # of another form: whoever loads it says so


def _first_bad_in(path: Path, trained: set[str]) -> str:
    with path.open("rb") as file:
        return next((n for n, part in _parts(file, trained) if not _is_finite(part)), "")


def _parts(
    file: BinaryIO, wanted: set[str]
) -> Iterator[tuple[str, Iterator[np.ndarray[Any, Any]]]]:
    """The elements of the wanted tensors, in parts."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    for name, entry in header.items():
        if name in wanted and entry["dtype"] in _EXPONENTS:
            begin, end = entry["data_offsets"]
            yield name, _read(file, 8 + size + begin, end - begin, entry["dtype"])


def _read(file: BinaryIO, begin: int, size: int, dtype: str) -> Iterator[np.ndarray[Any, Any]]:
    import numpy as np

    form, exponent = _EXPONENTS[dtype]
    file.seek(begin)
    left = size // np.dtype(form).itemsize
    while left > 0:
        part = np.fromfile(file, form, min(left, _AT_ONCE))
        left = left - len(part) if len(part) else 0
        yield (part & exponent) == exponent


def _is_finite(parts: Iterator[np.ndarray[Any, Any]]) -> bool:
    return not any(part.any() for part in parts)
