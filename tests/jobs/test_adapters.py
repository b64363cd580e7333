"""A job names a class of another library's, and a distribution makes a plugin of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stranger import BUILD, install

from hatbus.discovery.entry_points import forget
from hatbus.errors import JobError
from hatbus.jobs.jobrun import prepare

LIBRARY = '''
class Callback:
    """What another library's callbacks are made of."""

    def after_step(self, loss): ...


class Records(Callback):
    def __init__(self, path: str, digits: int = 2):
        self.path, self.digits = path, digits

    def after_step(self, loss):
        with open(self.path, "a") as file:
            file.write(f"{loss:.{self.digits}f}\\n")
'''
ADAPTER = """
import inspect

from hatbus import hookimpl


def plugin_class(cls):
    class Adapted:
        __signature__ = inspect.signature(cls)

        def __init__(self, **options):
            self.callback = cls(**options)

        @hookimpl
        def on_step_end(self, losses):
            self.callback.after_step(losses["loss"].item())

    return Adapted
"""
JOB = """
[run]
entry = "build.py:build"
num_epochs = 1
device = "cpu"
[plugins.theirs]
use = "library:Records"
path = "losses.txt"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site = tmp_path / "site"
    modules = {"library.py": LIBRARY, "adapts_library.py": ADAPTER}
    install(site, "adapts-library", {}, modules)
    info = next(site.glob("*.dist-info"))
    entry = "[hatbus.adapters]\nlibrary.Callback = adapts_library:plugin_class\n"
    (info / "entry_points.txt").write_text(entry)
    (tmp_path / "build.py").write_text(BUILD)
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    for name in ("library", "adapts_library"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    forget()
    return tmp_path


def test_the_class_of_another_library_runs_with_its_own_options(folder: Path) -> None:
    (folder / "job.toml").write_text(f"{JOB}digits = 3\n")
    prepare(folder / "job.toml").build().fit(num_epochs=1)
    first, *more = (folder / "losses.txt").read_text().splitlines()
    assert len(more) == 2
    assert len(first.partition(".")[2]) == 3


def test_its_options_are_checked_before_training(folder: Path) -> None:
    (folder / "job.toml").write_text(f"{JOB}digit = 3\n")
    with pytest.raises(JobError, match=r"unknown option 'digit'.*did you mean 'digits'"):
        prepare(folder / "job.toml")


def test_an_adapter_that_cannot_be_loaded_is_named(folder: Path) -> None:
    (folder / "site/adapts_library.py").write_text("import not_there\n")
    (folder / "job.toml").write_text(JOB)
    with pytest.raises(JobError, match=r"library.Callback cannot be loaded from 'adapts_library:"):
        prepare(folder / "job.toml")
