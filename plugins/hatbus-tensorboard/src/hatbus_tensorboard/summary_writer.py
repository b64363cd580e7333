"""torch's ``SummaryWriter`` on an ``EventFile``: images, histograms, texts, user functions."""

from __future__ import annotations

from typing import Any

from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]
    Event,
    SessionLog,
)
from torch.utils.tensorboard import FileWriter, SummaryWriter

from hatbus_tensorboard.event_file import VERSION, EventFile


class _Adapter(FileWriter):
    """torch's file writer, which adds its events to the one file of the run."""

    def __init__(self, events: EventFile) -> None:
        self.event_writer: Any = events


class RunWriter(SummaryWriter):
    """Everything that ``SummaryWriter`` can write, in the same file as the scalars of the run.

    Args:
        events: the file, to which nothing was added yet.
        purge_step: TensorBoard forgets what it read for this and later steps.
    """

    def __init__(self, events: EventFile, purge_step: int | None = None) -> None:
        self._adapter = _Adapter(events)
        super().__init__(str(events.folder))
        self._adapter.add_event(Event(file_version=VERSION), step=purge_step)
        if purge_step is not None:
            started = SessionLog(status=SessionLog.START)
            self._adapter.add_event(Event(session_log=started), step=purge_step)

    def _get_file_writer(self) -> FileWriter:
        """The one writer; torch's own would open a file of its own."""
        self.file_writer: Any = self._adapter
        self.all_writers: Any = {self.log_dir: self._adapter}
        return self._adapter
