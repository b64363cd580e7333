"""The folder of a run that a script makes with a ``Trainer`` of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hatbus import option_values
from hatbus.errors import JobError
from hatbus.runs.claim import claim_for_all
from hatbus.runs.folders import NEW, SAME, Wanted, is_folder_name, run_folder
from hatbus.runs.record import RunRecord

if TYPE_CHECKING:
    from hatbus.bus.bus import Bus
    from hatbus.loop.context import Context
    from hatbus.runs.folders import RunFolder

RECORD = "core.run_record"


class ScriptRun:
    """Gives a trainer's run its folder at the first ``fit``, and holds it in each.

    Args:
        run_dir: where the folder is; None: the run has none.
        run_name: of the folder.
        resume: as in a job's ``[run]``.

    Raises:
        JobError: a value that cannot be used.
    """

    def __init__(
        self, run_dir: str | Path | None, run_name: str | None, resume: str | Path | None
    ) -> None:
        self._place = None if run_dir is None else option_values.path("run_dir", run_dir)
        if run_name is not None and not is_folder_name(run_name):
            raise JobError(f"run_name is {run_name!r}; accepted: the name of a folder")
        if run_name is not None and run_dir is None:
            raise JobError(f"run_name is {run_name!r}, and there is no run_dir; give both")
        self._name = run_name or ""
        if resume is not None and resume not in (*SAME, NEW):
            resume = str(run_folder(option_values.path("resume", resume)))
        self.resume = resume
        self._folder: RunFolder | None = None
        self._record: RunRecord | None = None

    @contextmanager
    def held(self, ctx: Context, bus: Bus) -> Iterator[None]:
        """Finds or makes the folder, and holds it meanwhile.

        Raises:
            HatbusError: there can be none.
        """
        if self._place is None:
            yield
            return
        if self._folder is None:
            self._folder = claim_for_all(self._wanted(bus, self._place))
            ctx.run_dir = self._folder.path
            self._record = RunRecord(self._folder)
            bus.register(self._record, RECORD, core=True)
        elif ctx.rank == 0:
            self._folder.hold()
        try:
            with self._record.watching() if self._record else nullcontext():
                yield
        finally:
            self._folder.release()

    def _wanted(self, bus: Bus, place: Path) -> Wanted:
        resume = self.resume
        if not resume:
            also = (getattr(member.plugin, "resume", None) for member in bus.members.values())
            resume = next((word for word in also if isinstance(word, str) and word in SAME), None)
        script = sys.argv[0] if sys.argv else ""
        job = str(Path(script).resolve()) if script else ""
        return Wanted(place, self._name, resume, job, tuple(sys.argv[1:]))
