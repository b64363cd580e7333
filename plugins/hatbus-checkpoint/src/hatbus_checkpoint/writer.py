"""One save at a time, in the background or not; what was saved is told by the training thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

Job = Callable[[], Path]


class Writer:
    """Runs save jobs in order.

    Args:
        in_background: in a thread of its own; a new job waits for the one before it.
    """

    def __init__(self, *, in_background: bool) -> None:
        self._pool = ThreadPoolExecutor(1, "hatbus-checkpoint") if in_background else None
        self._running: Future[Path] | None = None

    @property
    def is_background(self) -> bool:
        """Whether jobs outlive ``start``."""
        return self._pool is not None

    def start(self, job: Job) -> None:
        """Starts a job; the one before must have been collected."""
        if self._pool is not None:
            self._running = self._pool.submit(job)
            return
        finished: Future[Path] = Future()
        finished.set_result(job())
        self._running = finished

    def is_finished(self) -> bool:
        """Whether a job is there that ``collect`` would not wait for."""
        return self._running is not None and self._running.done()

    def collect(self) -> Path | None:
        """Waits for the job that runs, if any; its result, or its error raised."""
        running, self._running = self._running, None
        return None if running is None else running.result()

    def close(self) -> None:
        """Ends the thread."""
        if self._pool is not None:
            self._pool.shutdown()
