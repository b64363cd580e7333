"""stdout and stderr that outlive whoever reads them: ``hatbus run JOB | head`` ends no training.

Nor does a full disk that they are written to; that is said at the end.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Lasting(io.FileIO):
    """A file that throws away what it cannot write.

    Attributes:
        lost: why it could not, where that is not that its reader has gone.
    """

    lost: OSError | None = None

    def write(self, data: Buffer, /) -> int:
        """Writes; after an error to nowhere, as do processes that inherited the file."""
        try:
            return super().write(data)
        except OSError as error:
            self.lost = None if isinstance(error, BrokenPipeError) else error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(memoryview(data).cast("B"))


def outlive_readers() -> None:
    """Puts such files below stdout and stderr; those that are closed lead nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)  # pathlib would slow `--help` down
            setattr(sys, name, os.fdopen(nowhere, "w", encoding="utf-8"))
        elif type(stream) is io.TextIOWrapper:
            stream.flush()
            file = _Lasting(stream.fileno(), "w", closefd=False)
            lasting = io.TextIOWrapper(
                io.BufferedWriter(file),
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)


def lost_output() -> str:
    """Why something that was printed on stdout was not written; empty when all was."""
    sys.stdout.flush()
    file = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    lost = file.lost if isinstance(file, _Lasting) else None
    return f"cannot write to stdout: {lost.strerror}" if lost else ""


def leave(code: int) -> NoReturn:
    """Ends this process, one of several of a run, with its own exit code.

    What Python does at its end is done, but for the end of the interpreter itself: threads of a
    process group, or of what torch keeps for a sharded model, may meet it and abort (SIGABRT).
    """
    import atexit  # what no help has to wait for
    import threading

    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()  # noqa: SLF001 - there is no public way to run them
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
