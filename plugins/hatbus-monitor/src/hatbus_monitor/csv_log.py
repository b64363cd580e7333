"""``CsvLog``: every published number, as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatbus import hookimpl, plugin
from hatbus_monitor.log_rows import FIXED, LogRows, Row

if TYPE_CHECKING:
    from hatbus import Context


class Table:
    """Rows as CSV with one column per name; the file is written anew when a name is new."""

    suffix = ".csv"

    def __init__(self) -> None:
        self._columns: list[str] = []

    def read(self, path: Path) -> list[Row]:
        """The rows, values as text; a line that a kill cut off is left out."""
        text = path.read_bytes().decode("utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        rows = csv.DictReader(io.StringIO(whole, newline=""))
        return [
            {name: value for name, value in row.items() if value not in ("", None)}
            for row in rows
            if row.get("event") and (row.get("step") or "").isdigit()
        ]

    def append(self, path: Path, rows: list[Row]) -> None:
        """Adds lines, after widening the table where a name is new."""
        if columns_of(rows, self._columns) != self._columns:
            self.rewrite(path, [*self.read(path), *rows])
            return
        with path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerows(rows)

    def rewrite(self, path: Path, rows: list[Row]) -> None:
        """Writes the file anew, all or nothing."""
        self._columns = columns_of(rows, FIXED)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(path)


def columns_of(rows: Iterable[Row], known: Iterable[str]) -> list[str]:
    """The known columns, then every other name in the order of its first value."""
    return list(dict.fromkeys([*known, *(name for row in rows for name in row)]))


@plugin(stage="report", after=("stats_monitor", "progress"), ranks="zero")
class CsvLog:
    """Writes every published number to a table: step, epoch, event, time, one column per name.

    Cells without a value are empty. Several rows may have one step. A resumed run leaves no step
    out and none twice; a run that starts anew keeps the old file as ``.bak``.

    Args:
        path: of the file; by default ``log.csv`` in the run's folder. Among the callbacks of a
            validation it is in ``val`` there; that of a second one is named like the instance.
        flush_every: write every so many steps; also at epochs' ends, checkpoints and the run's end.

    Raises:
        JobError: a value that cannot be used.
    """

    def __init__(self, path: str | Path | None = None, flush_every: int = 50) -> None:
        self._rows = LogRows("csv_log", Table(), path, flush_every)

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Opens the file, after the resume."""
        self._rows.begin(ctx, self)

    @hookimpl
    def on_log(self, ctx: Context, logs: dict[str, Any], kind: str) -> None:
        """Takes numbers."""
        if kind == "scalar":
            self._rows.add(ctx, logs, texts=False)

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        """Writes where that is due."""
        self._rows.step_ended(ctx)

    @hookimpl
    def on_epoch_end(self) -> None:
        """Writes."""
        self._rows.flush()

    @hookimpl
    def on_loop_end(self) -> None:
        """Writes the rest."""
        self._rows.flush()

    def state_dict(self) -> dict[str, Any]:
        """How much of the file belongs to the checkpoint."""
        return self._rows.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes it back."""
        self._rows.load_state_dict(state)
