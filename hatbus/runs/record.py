"""Keeps a run's summary and curves: at its begin, at ends of epochs, at validations and saves."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.errors import HatbusError, SaveError
from hatbus.events.declare import hookimpl
from hatbus.log import log
from hatbus.runs.curves import CURVES_FILE, forget_after
from hatbus.runs.summary import FAILED, FINISHED, RUNNING, STOPPED, Summary, read_summary

if TYPE_CHECKING:
    from hatbus.loop.context import Context
    from hatbus.runs.folders import RunFolder

_MONITORS: Final = ("monitor_metric_key", "monitor")
_LONG: Final = 300


class RunRecord:
    """Writes the summary, on rank 0; a disk that is full is no reason to end a run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._summary = folder, Summary()
        self._is_begun = self._is_told = self._is_mine = False
        self._began_at = 0
        self._rows: list[dict[str, float]] = []
        self._last: dict[str, float] = {}

    @hookimpl(wrapper=True, tryfirst=True)
    def run_loop(self, ctx: Context) -> Generator[None, Any, Any]:
        """Says that it runs, then how it ended.

        Raises:
            SaveError: the folder cannot be written.
        """
        if ctx.rank != 0:
            return (yield)
        self._begin(ctx)
        try:
            done = yield
        except BaseException as error:
            self._end(ctx, *how_it_failed(error))
            raise
        self._end(ctx, *how_it_ended(ctx))
        return done

    @hookimpl(trylast=True)
    def on_epoch_end(self, ctx: Context) -> None:
        """Notes the metrics."""
        if ctx.exception is None:
            self._note(ctx)

    @hookimpl(trylast=True)
    def on_validation_end(self, ctx: Context) -> None:
        """Notes the metrics."""
        if ctx.exception is None:
            self._note(ctx)

    @hookimpl(trylast=True)
    def on_checkpoint_saved(self, ctx: Context) -> None:
        """Notes how far a run has come that may be killed before its epoch ends."""
        if ctx.rank == 0:
            self._summary.epochs = ctx.position.epoch
            self._summary.steps = ctx.position.global_step
            with suppress(OSError):  # the next note says it
                self._write(time.time())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes an error that comes up around the loop; the end of a process is none."""
        try:
            yield
        except SystemExit:
            raise
        except BaseException as error:
            if self._is_mine and self._summary.state != FAILED:
                self._summary.state, self._summary.reason = how_it_failed(error)
                self._try_to_write(self._began_at)
            raise

    def _begin(self, ctx: Context) -> None:
        now, wanted = time.time(), self._folder.wanted
        found = read_summary(self._folder.path)
        if found is None:
            found = Summary(wanted.job, list(wanted.changes), wanted.name, started=now)
        found.state, found.reason = RUNNING, ""
        found.process = {"pid": os.getpid(), "host": socket.gethostname()}
        found.judged |= judged_by(ctx.storage.get("job", {}))
        self._summary, self._is_begun, self._rows = found, False, []
        self._is_mine = True
        try:
            self._folder.path.mkdir(parents=True, exist_ok=True)
            self._write(now)
        except OSError as error:
            raise SaveError(
                f"cannot write into {str(self._folder.path)!r}: {error.strerror}; choose another "
                "run_dir"
            ) from error
        self._folder.is_latest()

    def _note(self, ctx: Context) -> None:
        """Takes what was published last; waits for the device, so not in every step."""
        if ctx.rank != 0:
            return
        self._take(ctx)
        self._try_to_write(ctx.began_at)

    def _end(self, ctx: Context, state: str, reason: str) -> None:
        if state != FAILED:
            self._take(ctx)
        summary = self._summary
        summary.state, summary.reason = state, reason[:_LONG]
        summary.epochs, summary.steps = ctx.position.epoch, ctx.position.global_step
        self._try_to_write(ctx.began_at)

    def _take(self, ctx: Context) -> None:
        summary = self._summary
        if not self._is_begun and ctx.began_at == 0:
            summary.metrics = {}  # the run starts anew in its folder
        summary.epochs, summary.steps = ctx.position.epoch, ctx.position.global_step
        numbers = numbers_of(ctx.latest)
        row = {"step": summary.steps, **numbers}
        if row != self._last:
            self._rows.append(row)
            self._last = row
        for name, value in numbers.items():
            known = summary.metrics.get(name, {"min": value, "max": value})
            least, most = min(known["min"], value), max(known["max"], value)
            if known["min"] != known["min"]:  # NaN, which compares with nothing
                least = most = value
            summary.metrics[name] = {"last": value, "min": least, "max": most}

    def _try_to_write(self, began_at: int) -> None:
        self._began_at = began_at
        try:
            self._write(time.time())
            path = self._folder.path / CURVES_FILE
            if not self._is_begun:
                forget_after(path, began_at)
                self._is_begun = True
            if self._rows:
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row) + "\n" for row in self._rows)
            self._rows = []
        except OSError as error:
            if not self._is_told:
                self._is_told = True
                log.warning("the run's summary is out of date: %s", error)

    def _write(self, now: float) -> None:
        self._summary.updated = now
        self._summary.write(self._folder.path)


def numbers_of(latest: Mapping[str, Any]) -> dict[str, float]:
    """The published values that are single numbers."""
    found = ((name, _number(value)) for name, value in latest.items())
    return {name: value for name, value in found if value is not None}


def _number(value: Any) -> float | None:
    if isinstance(value, torch.Tensor):
        return None if value.numel() != 1 or value.is_complex() else float(value.item())
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def judged_by(job: Mapping[str, Any]) -> dict[str, str]:
    """The metrics that plugins of a job judge by, and whether least or most is best."""
    found = {}
    tables = [*job.get("plugins", {}).values()]
    further = (t.get("bests") for t in tables)
    tables += [t for more in further if isinstance(more, dict) for t in more.values()]
    for options in tables:
        name = next((options[key] for key in _MONITORS if options.get(key)), None)
        if isinstance(name, str) and options.get("mode") in ("min", "max"):
            found[name] = options["mode"]
    return found


def how_it_failed(error: BaseException) -> tuple[str, str]:
    """State and reason of a run that an exception ended."""
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, "interrupted"
    said = str(error).partition("\n")[0]
    if isinstance(error, HatbusError):
        return FAILED, said
    return FAILED, f"{type(error).__name__}: {said}" if said else type(error).__name__


def how_it_ended(ctx: Context) -> tuple[str, str]:
    """State and reason of a run that no exception ended."""
    asked, position = ctx.control.stopped, ctx.position
    full = ctx.num_steps is not None and position.global_step >= ctx.num_steps
    full = full or (ctx.num_epochs is not None and position.epoch >= ctx.num_epochs)
    if full or asked is None or asked.wish != "stop run":
        return FINISHED, ""
    return STOPPED, f"{asked.by}: {asked.reason}" if asked.reason else asked.by
