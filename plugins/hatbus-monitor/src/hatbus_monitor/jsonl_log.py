"""``JsonlLog``: everything that is published, as one JSON object per line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatbus import hookimpl, plugin
from hatbus_monitor.log_rows import LogRows, Row

if TYPE_CHECKING:
    from hatbus import Context


class JsonLines:
    """Rows as JSON lines; NaN and infinities, which JSON lacks, as "nan", "inf" and "-inf"."""

    suffix = ".jsonl"

    def read(self, path: Path) -> list[Row]:
        """The rows; a line that a kill cut off is left out."""
        rows: list[Row] = []
        for line in path.read_bytes().splitlines():  # those of text have U+2028 and more as ends
            try:
                row = json.loads(line.decode("utf-8", errors="replace"))
            except ValueError:
                continue
            if isinstance(row, dict) and "step" in row and "event" in row:
                rows.append(row)
        return rows

    def append(self, path: Path, rows: list[Row]) -> None:
        """Adds lines."""
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write("".join(map(line_of, rows)))

    def rewrite(self, path: Path, rows: list[Row]) -> None:
        """Writes the file anew, all or nothing."""
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(map(line_of, rows)), "utf-8", newline="")
        partial.replace(path)


def line_of(row: Row) -> str:
    """One row as a line."""
    values = {name: json_value(value) for name, value in row.items()}
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


def json_value(value: Any) -> Any:
    """A value that JSON has."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@plugin(stage="report", after=("stats_monitor", "progress"), ranks="zero")
class JsonlLog:
    """Writes every published number and text to a file, one JSON object per line.

    A line: ``{"step": 9, "epoch": 0, "event": "step", "time": 1700000000.0, "train/loss": 0.5}``;
    ``event`` is "step", "epoch_begin" or "epoch_end". Several lines may have one step. A resumed
    run leaves no step out and none twice; a run that starts anew keeps the old file as ``.bak``.

    Args:
        path: of the file; by default ``log.jsonl`` in the run's folder. Among the callbacks of a
            validation it is in ``val`` there; that of a second one is named like the instance.
        flush_every: write every so many steps; also at epochs' ends, checkpoints and the run's end.

    Raises:
        JobError: a value that cannot be used.
    """

    def __init__(self, path: str | Path | None = None, flush_every: int = 50) -> None:
        self._rows = LogRows("jsonl_log", JsonLines(), path, flush_every)

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Opens the file, after the resume."""
        self._rows.begin(ctx, self)

    @hookimpl
    def on_log(self, ctx: Context, logs: dict[str, Any], kind: str) -> None:
        """Takes numbers and texts."""
        if kind in ("scalar", "text"):
            self._rows.add(ctx, logs, texts=kind == "text")

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
