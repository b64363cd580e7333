"""The files of a prediction, written row by row, that a killed one goes on with.

::

    <folder>/predictions.json              what was predicted, and how far: see ``Progress``
             predictions.jsonl.part        a line for each sample; without `.part` when it is whole
             predictions-00000.safetensors ...: or the samples in shards, each there or not there
             .predictions.lock             who writes here

What the progress says is durable before it is said. What a file has beyond that is cut off when the
prediction goes on, so it ends with the files that an undisturbed one has.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from hatbus_checkpoint import durable, tensor_file
from hatbus_checkpoint.output_rows import INDEX

PROGRESS: Final = "predictions.json"
LOCK: Final = ".predictions.lock"
LINES: Final = "predictions.jsonl"
_OWN: Final = (LINES, f"{LINES}.part", "predictions-*.safetensors", ".tmp-predictions*", PROGRESS)
_SECONDS: Final = 1.0
"""How often lines are brought to the disk."""


@dataclass
class Progress:
    """How far a prediction is, as the file says.

    Attributes:
        of: what is predicted; one of something else does not go on here.
        batches: that are written.
        samples: the same.
        bytes: of the lines, or 0.
        files: the finished ones, in order.
        complete: whether that is all.
    """

    of: dict[str, Any]
    batches: int = 0
    samples: int = 0
    bytes: int = 0
    files: list[str] = field(default_factory=list)
    complete: bool = False

    def write(self, folder: Path) -> None:
        """Puts it on the disk in place of an earlier one."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        durable.replace_file(folder / PROGRESS, [text.encode()])


def progress_in(folder: Path) -> Progress | None:
    """How far the prediction in a folder is; None where there is none.

    Raises:
        ValueError: the file is not what was written.
    """
    try:
        text = (folder / PROGRESS).read_text("utf-8")
    except FileNotFoundError:
        return None
    found = json.loads(text)
    try:
        return Progress(**found)
    except TypeError as error:
        raise ValueError(str(error)) from error


def places_in(folder: Path, progress: Progress) -> list[int]:
    """The places of the samples that are written."""
    if progress.bytes:
        path = folder / (LINES if progress.complete else f"{LINES}.part")
        with path.open("rb") as file:
            lines = file.read(progress.bytes).splitlines()
        return [json.loads(line)[INDEX] for line in lines]
    found = (tensor_file.read(folder / name)[INDEX] for name in progress.files)
    return [int(place) for places in found for place in places]


def remove_files(folder: Path) -> None:
    """Removes what a prediction has written in a folder, and nothing else."""
    for pattern in _OWN:
        for path in folder.glob(pattern):
            path.unlink()


class Output(Protocol):
    """Where rows go. ``before`` and ``batches`` count whole batches; None while some are torn."""

    progress: Progress

    def add(self, rows: list[tuple[int, Any]], before: int | None) -> None:
        """Takes rows with their places, behind so many batches."""

    def settle(self, batches: int) -> None:
        """So many batches are here in all: a good moment to note it."""

    def finish(self, batches: int) -> None:
        """There are no more."""

    def leave(self, batches: int | None) -> None:
        """It goes on another time; what can be kept is kept."""


class LineFile:
    """Rows as lines of a file.

    Args:
        folder: of the file.
        progress: how far it is.

    Raises:
        ValueError: the file has lost what was written.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder, self.progress = folder, progress
        self._path = folder / f"{LINES}.part"
        if (folder / LINES).exists() and not self._path.exists():
            os.rename(folder / LINES, self._path)  # noqa: PTH104 - it was whole, but that was not said any more
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        self._samples, self._size = progress.samples, progress.bytes
        size = os.fstat(self._file).st_size
        if size < self._size:
            os.close(self._file)
            raise ValueError(f"{self._path.name} has {size:,} of {self._size:,} bytes")
        self._cut()
        self._noted = time.monotonic()

    def add(self, rows: list[tuple[int, Any]], before: int | None) -> None:
        """Appends lines, all of them or none."""
        text = b"".join(line for _, line in rows)
        rest = memoryview(text)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except BaseException:
            self._cut()
            raise
        self._samples, self._size = self._samples + len(rows), self._size + len(text)

    def settle(self, batches: int) -> None:
        """Brings them to the disk now and then."""
        if time.monotonic() - self._noted > _SECONDS:
            self._note(batches)

    def leave(self, batches: int | None) -> None:
        """Brings them to the disk."""
        try:
            if batches is not None:
                self._note(batches)
        except OSError:  # of a full disk everybody was told
            pass
        finally:
            os.close(self._file)

    def finish(self, batches: int) -> None:
        """Gives the file its name."""
        self._note(batches)
        os.close(self._file)
        os.rename(self._path, self._folder / LINES)  # noqa: PTH104
        self.progress.files, self.progress.complete = [LINES], True
        self.progress.write(self._folder)

    def _cut(self) -> None:
        """Cuts off what was not written whole."""
        os.ftruncate(self._file, self._size)
        os.lseek(self._file, self._size, os.SEEK_SET)

    def _note(self, batches: int) -> None:
        os.fsync(self._file)
        self.progress.batches, self.progress.samples = batches, self._samples
        self.progress.bytes, self._noted = self._size, time.monotonic()
        self.progress.write(self._folder)


class Shards:
    """Rows of tensors, so many to a file; rows of another shape begin a new one.

    Args:
        folder: of the files.
        progress: how far they are.
        size: rows in a file; the batch that fills it is not torn.

    Raises:
        ValueError: a file is gone.
    """

    def __init__(self, folder: Path, progress: Progress, size: int) -> None:
        self._folder, self.progress, self._size = folder, progress, size
        self._rows: list[tuple[int, dict[str, torch.Tensor]]] = []
        self._files, self._samples = [*progress.files], progress.samples
        gone = [name for name in self._files if not (folder / name).is_file()]
        if gone:
            raise ValueError(f"{gone[0]} is gone")
        for path in folder.glob("predictions-*.safetensors"):
            if path.name not in self._files:  # it was written, but that was not said any more
                path.unlink()

    def add(self, rows: list[tuple[int, Any]], before: int | None) -> None:
        """Takes rows; those of one shape make a file."""
        for row in rows:
            if self._rows and _shape(row[1]) != _shape(self._rows[0][1]):
                self._flush()
                if row is rows[0] and before is not None:
                    self._note(before)
            self._rows.append(row)

    def settle(self, batches: int) -> None:
        """Writes a file when there is enough for one."""
        if len(self._rows) >= self._size:
            self._flush()
            self._note(batches)

    def finish(self, batches: int) -> None:
        """Writes the rest."""
        if self._rows:
            self._flush()
        self.progress.complete = True
        self._note(batches)

    def leave(self, batches: int | None) -> None:
        """Keeps the files that are whole: the next begin where an undisturbed one has them."""

    def _flush(self) -> None:
        """Writes the rows that are there as one file."""
        name = f"predictions-{len(self._files):05d}.safetensors"
        tensors = {INDEX: torch.tensor([place for place, _ in self._rows], dtype=torch.int64)}
        for part in self._rows[0][1]:
            tensors[part] = torch.stack([row[part] for _, row in self._rows])
        durable.replace_file(self._folder / name, tensor_file.chunks_of(tensors))
        self._files.append(name)
        self._samples, self._rows = self._samples + len(self._rows), []

    def _note(self, batches: int) -> None:
        progress = self.progress
        progress.batches, progress.samples, progress.files = batches, self._samples, [*self._files]
        progress.write(self._folder)


def _shape(row: dict[str, torch.Tensor]) -> list[tuple[str, Any, Any]]:
    return [(name, tensor.shape, tensor.dtype) for name, tensor in row.items()]
