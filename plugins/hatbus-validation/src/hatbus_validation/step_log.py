"""Says how far a validation is: in the log, and to a progress bar if the run has one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from hatbus import hookimpl, plugin
from hatbus.log import log

if TYPE_CHECKING:
    from hatbus import Context


@plugin(stage="report", ranks="zero")
class StepLog:
    """A line in the log every so many steps of a validation; every step to the progress bar.

    Args:
        interval: steps between two lines; None: none.
        loader: name of the loader, where there are several.
    """

    def __init__(self, interval: int | None, loader: str = "") -> None:
        self._interval = interval
        self._loader = f" of {loader!r}" if loader else ""
        self._began = 0.0
        self._show: Callable[[str, int, int | None], None] | None = None

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Starts the clock."""
        self._show = ctx.storage.get("progress")
        self._began = time.monotonic()

    @hookimpl
    def on_batch_end(self, ctx: Context, step_id: int) -> None:
        """Says the step and the time per step; a step is a batch, whose end others hear as well."""
        if self._show is not None:
            self._show(f"validation{self._loader}", step_id + 1, ctx.total_steps)
        n = self._interval
        if n is not None and (step_id + 1) % n == 0 and ctx.exception is None:
            steps = "" if ctx.total_steps is None else f" of {ctx.total_steps}"
            each = (time.monotonic() - self._began) / (step_id + 1) * 1000
            log.info(
                "validation%s: step %d%s, %.3g ms each", self._loader, step_id + 1, steps, each
            )
