"""Published values as rows of plain values, kept exact over a resume.

A row is a flat mapping: ``step`` (0-based, of the run), ``epoch``, ``event`` (``"step"``,
``"epoch_begin"`` or ``"epoch_end"``: what was going on; ``"validation"`` in one), ``time`` (Unix
seconds), then one entry per published name.

Among the callbacks of a validation the step and epoch are those of the training, the names those
that it publishes (``val/loss``), and all validations of a run are in one file.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from torch import Tensor

from hatbus import option_values
from hatbus.errors import JobError, SaveError
from hatbus.loop import claim_file, file_owner, instance_name
from hatbus_monitor.one_transfer import numbers

if TYPE_CHECKING:
    from hatbus import Context

Row = dict[str, Any]
FIXED: Final = ("step", "epoch", "event", "time")


class Format(Protocol):
    """How rows look in a file."""

    suffix: str

    def read(self, path: Path) -> list[Row]:
        """The rows of a file; a last row that was cut off is left out."""

    def append(self, path: Path, rows: list[Row]) -> None:
        """Adds rows."""

    def rewrite(self, path: Path, rows: list[Row]) -> None:
        """Writes the file anew, all or nothing."""


class LogRows:
    """Gathers what is published and writes it to a file every few steps.

    Tensors are kept as they are until then, so nothing waits for the device in between.

    Args:
        who: the plugin, for messages.
        style: how rows look.
        path: of the file; None: ``log`` with the style's suffix in the run's folder, below it in
            ``val`` for a validation; ``<instance name>`` for ``log`` where another has that.
        flush_every: write every so many steps; also at epochs' ends and checkpoints.

    Raises:
        JobError: a value that cannot be used.
    """

    def __init__(self, who: str, style: Format, path: str | Path | None, flush_every: int) -> None:
        self._who, self._style = who, style
        option_values.whole(f"{who}: flush_every", flush_every, 1)
        self._given = None if path is None else option_values.path(f"{who}: path", path)
        self._every = flush_every
        self._pending: list[Row] = []
        self._last: tuple[int, str, int] | None = None
        self._restored: int | None = None
        self._written = 0
        self._path = Path()

    def begin(self, ctx: Context, plugin: object) -> None:
        """Makes the file ready: what a resumed run will do again is taken out.

        Args:
            ctx: of the run that begins; a validation begins many times and goes on in its file.
            plugin: whose rows these are.

        Raises:
            JobError: neither the plugin nor the run says where, or another plugin writes there.
            SaveError: the file cannot be written.
        """
        self._path = self._place(ctx, plugin)
        is_known, is_inside = claim_file(ctx, self._path, plugin), ctx.training is not ctx
        if is_known and is_inside:
            return
        self._pending, self._last = [], None
        kept: list[Row] = []
        is_new = (ctx.training.began_at if is_inside else ctx.position.global_step) == 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and is_new:
                self._path.replace(self._path.with_name(f"{self._path.name}.bak"))
            elif self._path.exists():
                rows = self._style.read(self._path)
                kept = validated(rows, ctx) if is_inside else still_true(rows, self._restored, ctx)
            self._style.rewrite(self._path, kept)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._written, self._restored = len(kept), None

    def add(self, ctx: Context, logs: Mapping[str, Any], *, texts: bool) -> None:
        """Takes published values; those that are no single number (or text) are left out."""
        run = ctx.training
        if run is not ctx:
            logs = {ctx.name_in_run(name): value for name, value in logs.items()}
        values = {
            f"log/{name}" if name in FIXED else name: without_graph(value)
            for name, value in logs.items()
            if is_number(value) or (texts and isinstance(value, str))
        }
        if not values:
            return
        event = event_of(ctx) if run is ctx else "validation"
        key = (run.global_step_id, event, ctx.global_step_id)
        if key != self._last or not self._pending:
            now = round(time.time(), 3)
            fixed = (run.global_step_id, run.epoch_id, event, now)
            self._pending.append(dict(zip(FIXED, fixed, strict=True)))
            self._last = key
        self._pending[-1].update(values)

    def step_ended(self, ctx: Context) -> None:
        """Writes where that is due."""
        if (ctx.global_step_id + 1) % self._every == 0:
            self.flush()

    def flush(self) -> None:
        """Writes what was gathered, with one transfer from the device.

        Raises:
            SaveError: the file cannot be written.
        """
        rows, self._pending = self._pending, []
        if not rows:
            return
        flat = iter(numbers(value for row in rows for value in row.values()))
        rows = [{name: next(flat) for name in row} for row in rows]
        try:
            self._style.append(self._path, rows)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._written += len(rows)

    def state_dict(self) -> dict[str, Any]:
        """How many rows the file holds; they are in it before a checkpoint counts on them."""
        self.flush()
        return {"rows": self._written}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remembers it until ``begin``, which comes after the resume."""
        self._restored = state["rows"]

    def _place(self, ctx: Context, plugin: object) -> Path:
        if self._given is not None:
            return self._given
        if ctx.run_dir is None:
            raise JobError(
                f"{self._who}: the run has no folder; give {self._who} a path, or the run a run_dir"
            )
        path = ctx.run_dir / ctx.part / f"log{self._style.suffix}"
        owner = file_owner(ctx, path)
        if owner is None or owner[0] is plugin:
            return path
        return path.with_stem(instance_name(ctx, plugin))

    def _cannot_write(self, error: OSError) -> SaveError:
        return SaveError(
            f"{self._who}: cannot write {str(self._path)!r}: {error.strerror or error}; choose "
            f"another path, or switch it off (-p no:{self._who})"
        )


def event_of(ctx: Context) -> str:
    """What is going on: ``"step"``, ``"epoch_begin"`` or ``"epoch_end"``."""
    position = ctx.position
    if position.step == 0:
        return "epoch_end" if ctx.epoch_id < position.epoch else "epoch_begin"
    return "step" if position.step == ctx.step_id + 1 else "epoch_begin"


def still_true(rows: Iterable[Row], saved: int | None, ctx: Context) -> list[Row]:
    """The rows of a file that a resumed run will not write again.

    Args:
        rows: of the file, oldest first.
        saved: how many of them there were when the checkpoint was made; None: nobody knows.
        ctx: the resumed run.

    Returns:
        All rows from before the checkpoint, and of later ones those of the very moment it was
        made in: published by plugins that came after it in the same step or epoch end.
    """
    last = ctx.position.global_step - 1
    moments = {"step", "epoch_end"} if ctx.position.step == 0 else {"step"}

    def is_behind(number: int, row: Row) -> bool:
        if saved is not None and number < saved:
            return True
        step = int(row["step"])
        return step < last or (step == last and row["event"] in moments)

    return [row for number, row in enumerate(rows) if is_behind(number, row)]


def validated(rows: Iterable[Row], ctx: Context) -> list[Row]:
    """The rows of a file that no validation of a resumed run will write again.

    Args:
        rows: of the file, oldest first.
        ctx: of the run's first validation since.
    """
    run = ctx.training
    first = min(run.began_at, run.global_step_id)
    return [row for row in rows if int(row["step"]) < first]


def without_graph(value: Any) -> Any:
    """The same value, but of a tensor not what it was computed from; no copy, no waiting."""
    if type(value) is float or not isinstance(value, Tensor) or not value.requires_grad:
        return value
    return value.detach()


def is_number(value: Any) -> bool:
    """Whether a value is one number, on the host or on a device."""
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float))
