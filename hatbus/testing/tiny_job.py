"""``TinyJob``: a job file with its entry file in a folder, and the command line on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Final

_ENTRY: Final = "from hatbus.testing import tiny_parts as build\n"


class TinyJob:
    """A job that trains the tiny net.

    Args:
        folder: where its files are written.
        plugins: the ``[plugins.*]`` tables as text.
        run: further lines of ``[run]``.

    Attributes:
        path: of the job file.
    """

    def __init__(self, folder: Path, plugins: str = "", run: str = "num_epochs = 2") -> None:
        self.path = folder / "job.toml"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.py").write_text(_ENTRY, "utf-8")
        lines = f'[run]\nentry = "train.py:build"\ndevice = "cpu"\n{dedent(run)}\n'
        self.path.write_text(lines + dedent(plugins), "utf-8")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``hatbus run JOB`` with more words, such as ``"-p", "my_plugin"``."""
        return self.hatbus("run", str(self.path), *words)

    def hatbus(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Any command, in a process of its own that sees this process's ``sys.path``."""
        path = os.pathsep.join(one for one in sys.path if one)
        return subprocess.run(  # noqa: S603 - this interpreter, with the words of a test
            [sys.executable, "-m", "hatbus", *words],
            cwd=self.path.parent,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
