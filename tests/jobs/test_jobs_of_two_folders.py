"""Jobs of several folders in one process: each gets its own modules, also of equal names."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hatbus.cli import main
from hatbus.jobs.hat_config import read_stage
from hatbus.jobs.references import References

TRAIN = """
from helpers import WHO
from parts.names import PART

def build():
    return WHO, PART
"""
CONFIG = """
from train import build
print(*build())
float_trainer = dict(type="Trainer", model=dict(type="Nothing"))
"""


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[list[Path]]:
    """Two folders with equally named modules and a package."""
    before, path = set(sys.modules), list(sys.path)
    made = [tmp_path / name for name in ("one", "two")]
    for folder in made:
        (folder / "parts").mkdir(parents=True)
        (folder / "train.py").write_text(TRAIN)
        (folder / "config.py").write_text(CONFIG)
        (folder / "helpers.py").write_text(f"WHO = {folder.name!r}\n")
        (folder / "parts/__init__.py").write_text("")
        (folder / "parts/names.py").write_text(f"PART = 'part of {folder.name}'\n")
    yield made
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_each_job_imports_the_modules_beside_it(folders: list[Path]) -> None:
    found = [References([folder]).find("train.py:build") for folder in [*folders, *folders]]
    names = [build() for build in found]
    assert names == [("one", "part of one"), ("two", "part of two")] * 2
    assert found[0] is found[2]  # imported once, and still there
    assert found[1] is found[3]


def test_so_do_configs_in_hats_form(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (*folders, folders[0]):
        read_stage(str(folder / "config.py"), "float_trainer", (), ())
    one, two = "one part of one", "two part of two"
    assert capsys.readouterr().out.splitlines() == [one, two, one]


def test_a_module_that_no_job_brought_stays(folders: list[Path], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "helpers.py").write_text("WHO = 'the program'\n")
    sys.path.insert(0, str(elsewhere))
    import helpers  # type: ignore[import-not-found]

    assert References(folders[:1]).find("train.py:build")()[0] == "the program"
    assert sys.modules["helpers"] is helpers


def test_a_command_run_inside_a_program_leaves_its_log_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("hatbus")
    handler = logging.NullHandler()
    log.addHandler(handler)
    before = log.handlers[:], log.level, log.propagate
    try:
        assert main(["run", str(tmp_path / "none.toml")]) == 2
        assert main(["plugins", "show", "zzz"]) == 2
        assert (log.handlers, log.level, log.propagate) == before
    finally:
        log.removeHandler(handler)
