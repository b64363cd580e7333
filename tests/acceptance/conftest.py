"""The real commands, each in processes of its own that never outlive the test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from stranger import CHECKOUT

_ROW = re.compile(r"^[│|]\s*(\S+)\s*[│|]\s*(\S+)\s*[│|]$", re.MULTILINE)


@dataclass
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on stderr."""
        return self.err.rstrip().rpartition("\n")[2]

    @property
    def metrics(self) -> dict[str, float]:
        """The table that a run prints when it is over."""
        return {name: float(value) for name, value in _ROW.findall(self.out)}


@dataclass
class Outside:
    """Runs commands in a folder, with a folder of fake distributions in sight.

    Attributes:
        cwd: where the commands run.
        site: the folder with the fake distributions.
        warnings: what ``PYTHONWARNINGS`` says; torchrun itself warns.
    """

    cwd: Path
    site: Path
    seconds: float = 110.0
    warnings: str = "error"
    _running: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, words: Sequence[str | Path], **env: str) -> subprocess.Popen[str]:
        """Starts a command in a process group of its own."""
        settings = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(self.site)]),
            "PYTHONWARNINGS": self.warnings,
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
            **env,
        }
        process = subprocess.Popen(
            [str(word) for word in words],
            cwd=self.cwd,
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._running.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], seconds: float | None = None) -> Done:
        """Waits for a command; one that takes too long is a failure."""
        out, err = process.communicate(timeout=seconds or self.seconds)
        return Done(process.returncode, out, err)

    def run(self, *words: str | Path, **env: str) -> Done:
        """Runs a command."""
        return self.finish(self.start(words, **env))

    def hatbus(self, *words: str | Path, **env: str) -> Done:
        """Runs ``hatbus``."""
        return self.run(sys.executable, "-m", "hatbus", *words, **env)

    def torchrun(self, *words: str | Path, **env: str) -> Done:
        """Runs ``hatbus`` as two processes."""
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        self.warnings = "default"
        return self.run(sys.executable, *launch, "-m", "hatbus", *words, **env)

    def close(self) -> None:
        """Ends whatever is still there, grandchildren included."""
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    """Commands in an empty folder."""
    found = Outside(tmp_path, tmp_path / "site")
    yield found
    found.close()
