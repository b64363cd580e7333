"""The journal: everything that was published, on disk before it is delivered.

``points.jsonl`` holds a piece per call of ``ctx.log``; pieces of one step that follow each other
are a row. ``sent.json`` says how many pieces were given to the service (``begun``), and of how many
of them it is certain that they arrived (``done``). What is between is in doubt after a kill.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hatbus.tracking.service import Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Piece = dict[str, Any]
POINTS: Final = "points.jsonl"
SENT: Final = "sent.json"
MEDIA: Final = "media"
MOST: Final = 1000
"""Pieces that are read and delivered at once."""


class Journal:
    """The pieces of one run, appended in order; steps ascend where the service wants that.

    Args:
        folder: of the journal; it is made.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / POINTS
        self.pieces = self.begun = self.done = 0
        self.top = -1
        """The last step that was given to the service."""
        self._size = self._read_from = 0

    def restart(self) -> None:
        """Begins anew; what was there is kept as ``.bak``."""
        for name in (POINTS, SENT):
            if (self.folder / name).exists():
                (self.folder / name).replace(self.folder / f"{name}.bak")
        self.keep([])

    def keep(self, pieces: Sequence[Piece]) -> None:
        """Makes the file hold these pieces, all or nothing, and finds its place in it."""
        partial = self.path.with_name(f".{POINTS}.partial")
        partial.write_bytes(b"".join(map(_line, pieces)))
        partial.replace(self.path)
        self.pieces, self._size = len(pieces), self.path.stat().st_size
        self.begun, self.done = (min(count, self.pieces) for count in self._marks())
        self.top = max((piece["step"] for piece in pieces[: self.begun]), default=-1)
        self._seek(pieces)

    def read(self) -> list[Piece]:
        """All pieces; a last one that a kill cut off is left out."""
        return [*_pieces(self.path.read_bytes())] if self.path.exists() else []

    def arrived(self, last: int) -> None:
        """Takes the service's word for it: it holds everything up to this step, and no more."""
        pieces = self.read()
        count = next((n for n, piece in enumerate(pieces) if piece["step"] > last), len(pieces))
        self.begun = self.done = count
        self.top = last
        self._seek(pieces)
        self._mark()

    def append(self, pieces: Sequence[Piece]) -> None:
        """Adds pieces: whole, or none.

        Raises:
            OSError: they cannot be written.
        """
        data = b"".join(map(_line, pieces))
        with self.path.open("r+b", buffering=0) as file:
            file.seek(self._size)
            try:
                _write_all(file, data)
            except OSError:
                file.truncate(self._size)
                raise
        self._size += len(data)
        self.pieces += len(pieces)

    def settle(self) -> None:
        """Everything that was added outlives the machine's end, too."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def unsent(self, before: float, limit: int) -> tuple[list[Row], int, int]:
        """The next rows that are whole.

        Args:
            before: steps from here on may get more pieces.
            limit: pieces from here on are not to be delivered yet.

        Returns:
            Rows, how many pieces are behind them, and where in the file that is.
        """
        count, place = self.done, self._read_from
        groups: list[tuple[list[Piece], int, int]] = []
        with self.path.open("rb") as file:
            file.seek(place)
            while count < min(limit, self.pieces):
                if count - self.done >= MOST and len(groups) > 1:
                    break
                line = file.readline()
                count, place = count + 1, place + len(line)
                piece = json.loads(line)
                if groups and groups[-1][0][0]["step"] == piece["step"]:
                    groups[-1] = ([*groups[-1][0], piece], count, place)
                else:
                    groups.append(([piece], count, place))
        if groups and (count < self.pieces or groups[-1][0][0]["step"] >= before):
            groups.pop()  # it may go on
        if not groups:
            return [], self.done, self._read_from
        return [row_of(pieces, self.folder) for pieces, _, _ in groups], *groups[-1][1:]

    def begin_sending(self, count: int, top: int) -> None:
        """Notes that pieces up to here are given to the service."""
        self.begun, self.top = max(count, self.begun), max(top, self.top)
        self._mark()

    def has_sent(self, count: int, place: int) -> None:
        """Notes that pieces up to here arrived."""
        self.done, self._read_from = count, place
        self._mark()

    def _marks(self) -> tuple[int, int]:
        try:
            found = json.loads((self.folder / SENT).read_text("utf-8"))
            return int(found["begun"]), int(found["done"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0

    def _mark(self) -> None:
        partial = self.folder / f".{SENT}.partial"
        partial.write_text(json.dumps({"begun": self.begun, "done": self.done}), "utf-8")
        partial.replace(self.folder / SENT)

    def _seek(self, pieces: Sequence[Piece]) -> None:
        self._read_from = sum(len(_line(piece)) for piece in pieces[: self.done])


def row_of(pieces: Iterable[Piece], folder: Path) -> Row:
    """Pieces of one step as a row; of two values of one name the later one counts."""
    ordered = list(pieces)
    first = ordered[0]
    row = Row(first["step"], first["epoch"], first["time"])
    for piece in ordered:
        values = piece["values"]
        if piece["kind"] == "scalar":
            row.scalars.update(values)
        elif piece["kind"] == "text":
            row.texts.update(values)
        elif piece["kind"] == "image":
            row.images.update({name: folder / file for name, file in values.items()})
        elif piece["kind"] == "histogram":
            row.histograms.update({name: (one[0], one[1]) for name, one in values.items()})
        elif piece["kind"] == "checkpoint":
            row.checkpoints.extend(Path(file) for file in values.values())
    return row


def _line(piece: Piece) -> bytes:
    return json.dumps(piece).encode() + b"\n"


def _pieces(data: bytes) -> Iterator[Piece]:
    for line in data.splitlines():
        try:
            piece = json.loads(line)
        except ValueError:
            return
        if not isinstance(piece, dict) or "step" not in piece:
            return
        yield piece


def _write_all(file: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
