"""An event file that a thread writes: putting a step's scalars into it costs a list append."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from hatbus.errors import SaveError
from hatbus_tensorboard.records import record, scalar_records

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]

PATTERN: Final = "events.out.tfevents.*"
VERSION: Final = "brain.Event:2"
_serial: Final = count()


Scalars = tuple[tuple[str, ...], int, float, torch.Tensor | tuple[float, ...]]
"""Tags, step, wall time and values, not yet written; a tensor (tags,) is still on its device."""


class EventFile:
    """Writes events in the order they were added.

    Scalars are kept as they are until the thread writes them: tensors on a device are read there,
    many steps in one transfer. ``flush`` writes everything now; what was flushed survives the
    death of the process.

    Args:
        folder: where the file is made.
        seconds: between two looks of the thread.
        most: entries that make it look at once.
        suffix: of the file's name.
        path: of a file that was closed, to go on in it.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float = 1.0,
        most: int = 2048,
        suffix: str = "",
        path: Path | None = None,
    ) -> None:
        self.folder = folder
        self._most, self._seconds = most, seconds
        host = f"{socket.gethostname()}.{os.getpid()}.{next(_serial)}"
        name = f"events.out.tfevents.{_number(folder):010d}.{host}{suffix}"
        self.path, self.is_new = path or folder / name, path is None
        self._queue: deque[Scalars | bytes] = deque()
        self._writing, self._wake = threading.Lock(), threading.Event()
        self._is_closed = False
        self._error: OSError | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("xb" if self.is_new else "ab", buffering=0)
        except OSError as error:
            raise SaveError(
                f"tensorboard: cannot write {str(self.path)!r}: {error.strerror}; choose another "
                "save_dir"
            ) from error
        self._thread = threading.Thread(target=self._run, name="tensorboard", daemon=True)
        self._thread.start()

    def add_scalars(self, scalars: Scalars) -> None:
        """Adds the scalars of a step."""
        self._queue.append(scalars)
        if len(self._queue) >= self._most:
            self._wake.set()

    def add_event(self, event: Event) -> None:
        """Adds an event of any kind (torch's ``FileWriter`` calls this)."""
        self._queue.append(event.SerializeToString())

    def get_logdir(self) -> str:
        """The folder (torch's ``FileWriter`` calls this)."""
        return str(self.folder)

    def flush(self) -> None:
        """Writes everything that was added.

        Raises:
            SaveError: it cannot be written.
        """
        self._write()
        if self._error is not None:
            raise SaveError(
                f"tensorboard: cannot write {str(self.path)!r}: {self._error.strerror}; make room, "
                "or run without tensorboard"
            ) from self._error

    def close(self) -> None:
        """Writes everything and ends the thread; a second close does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._wake.set()
        self._thread.join()
        try:
            self.flush()
        finally:
            self._file.close()

    def _run(self) -> None:
        while not self._is_closed:
            self._wake.wait(self._seconds)
            self._wake.clear()
            self._write()

    def _write(self) -> None:
        with self._writing:
            entries = [self._queue.popleft() for _ in range(len(self._queue))]
            if not entries or self._error is not None:
                return
            try:
                _write_all(self._file, b"".join(encoded(entries)))
            except OSError as error:
                self._error = error


def _number(folder: Path) -> int:
    """Seconds since 1970, but more than in any file there: files are read in this order."""
    names = (path.name.split(".")[3] for path in folder.glob(PATTERN))
    return max([int(time.time()), *(int(name) + 1 for name in names if name.isdigit())])


def encoded(entries: list[Scalars | bytes]) -> list[bytes]:
    """Records in the order of the entries; scalars of equal tags are made together."""
    found = [b""] * len(entries)
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, entry in enumerate(entries):
        if isinstance(entry, bytes):
            found[index] = record(entry)
        else:
            groups.setdefault(entry[0], []).append(index)
    for tags, indices in groups.items():
        chosen: Any = [entries[index] for index in indices]
        _, steps, times, values = zip(*chosen, strict=True)
        made = scalar_records(tags, steps, times, numbers(values))
        for index, data in zip(indices, made, strict=True):
            found[index] = data
    return found


def numbers(values: Sequence[torch.Tensor | tuple[float, ...]]) -> NDArray[Any]:
    """Values of many steps as an array (steps, tags), with one transfer per kind of tensor."""
    found: list[Any] = list(values)
    if all(type(value) is tuple for value in found):
        return np.array(found, np.float64)
    for indices in _alike(values):
        stacked = torch.stack([found[index] for index in indices])
        rows = stacked.to("cpu", torch.float64).numpy()
        for index, row in zip(indices, rows, strict=True):
            found[index] = row
    return np.array(found, np.float64)


def _alike(values: Sequence[torch.Tensor | tuple[float, ...]]) -> Iterator[list[int]]:
    """Indices of the tensors that can be stacked."""
    groups: dict[Any, list[int]] = {}
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            groups.setdefault((value.device, value.dtype), []).append(index)
    yield from groups.values()


def _write_all(file: Any, data: bytes) -> None:
    """Writes to an unbuffered file, which may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
