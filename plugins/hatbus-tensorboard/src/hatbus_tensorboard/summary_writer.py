"""torch's ``SummaryWriter`` on an ``EventFile``: images, histograms, texts, user functions."""

from __future__ import annotations

from typing import Any

from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]
    Event,
    SessionLog,
)
from torch.utils.tensorboard import FileWriter, SummaryWriter

from hatbus_tensorboard.event_file import PATTERN, VERSION, EventFile


class _Adapter(FileWriter):
    """torch's file writer, which adds its events to the one file of the run."""

    def __init__(self, events: EventFile) -> None:
        self.event_writer: Any = events


class RunWriter(SummaryWriter):
    """Everything that ``SummaryWriter`` can write, in the same file as the scalars of the run.

    Args:
        events: the file, to which nothing was added since it was opened.
        purge_step: TensorBoard forgets what it read for this and later steps.
    """

    def __init__(self, events: EventFile, purge_step: int | None = None) -> None:
        self._adapter = _Adapter(events)
        super().__init__(str(events.folder))
        if not events.is_new:
            return
        self._adapter.add_event(Event(file_version=VERSION), step=purge_step)
        if purge_step is not None:
            started = SessionLog(status=SessionLog.START)
            # TensorBoard's reader in Python takes the first one of a folder for the beginning, and
            # forgets nothing then; so the first file has one, and where it has not, we need two.
            for _ in range(2 if _is_among_others(events) else 1):
                self._adapter.add_event(Event(session_log=started), step=purge_step)

    def _get_file_writer(self) -> FileWriter:
        """The one writer; torch's own would open a file of its own."""
        self.file_writer: Any = self._adapter
        self.all_writers: Any = {self.log_dir: self._adapter}
        return self._adapter


def _is_among_others(events: EventFile) -> bool:
    """Whether the folder holds other event files too."""
    return any(path != events.path for path in events.folder.glob(PATTERN))
