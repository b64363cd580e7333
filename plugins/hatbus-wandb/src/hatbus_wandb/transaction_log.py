"""Which steps are in the files that wandb wrote offline; its client tells nobody.

A ``.wandb`` file has a header of 7 bytes, then blocks of 32 KiB with the records of LevelDB's log
format: checksum (4 bytes), length (2), kind (1: whole, 2: first, 3: middle, 4: last part), data.
The data are messages of wandb's own protocol. A process that is killed leaves the last ones out.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HEADER: Final = 7
_BLOCK: Final = 32 * 1024
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def last_step(folder: Path, run_id: str) -> int:
    """The last step of a run in all its files; -1 where there is none.

    Args:
        folder: ``wandb``, with a folder for each time that the run was begun.
        run_id: of the run.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    last = -1
    for path in sorted(folder.glob(f"*/run-{run_id}.wandb")):
        for data in records(path.read_bytes()):
            found = Record.FromString(data)
            if found.WhichOneof("record_type") == "history":
                last = max(last, found.history.step.num)
    return last


def records(data: bytes) -> Iterator[bytes]:
    """The records of a file, up to where it is cut off."""
    parts: list[bytes] = []
    at = _HEADER
    while True:
        if at % _BLOCK > _BLOCK - 7:  # no room for a head
            at += _BLOCK - at % _BLOCK
        if at + 7 > len(data):
            return
        length, kind = struct.unpack_from("<HB", data, at + 4)
        part = data[at + 7 : at + 7 + length]
        if len(part) < length or kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST):
            return
        at += 7 + length
        parts = [part] if kind in (_WHOLE, _FIRST) else [*parts, part]
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)
            parts = []
