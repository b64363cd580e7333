"""The check of imports: what it refuses, tried on a copy of the sources."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGIN = "plugins/hatbus-lr/src/hatbus_lr/warmup.py"
UPWARDS = "a room imports only what stands below it BROKEN"
CIRCLE = "no circle, of files or of packages BROKEN"
PRIVATE = "of hatbus, of a room, of a module that is no room BROKEN"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what the check reads."""
    skip = shutil.ignore_patterns("__pycache__", "tests")
    for folder in ("hatbus", "plugins", ".ci"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ".ci/imports.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_imports_keep_to_their_levels_and_to_public_names(sources: Path) -> None:
    done = checked(sources)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("hatbus/events/event.py", "import hatbus.bus.order", UPWARDS),
        ("hatbus/errors.py", "def f():\n    import hatbus.trainer", UPWARDS),
        ("hatbus/anew.py", "", UPWARDS),
        ("hatbus/bus/blame.py", "import hatbus.bus.bus", CIRCLE),
        ("hatbus/rng.py", "import hatbus_lr", "the core imports no plugin BROKEN"),
        (PLUGIN, "from hatbus_lr import noam_lr", CIRCLE),
        (PLUGIN, "from hatbus.loop.control import Control", PRIVATE),
        (PLUGIN, "from hatbus.loop import control", PRIVATE),
        (PLUGIN, "if TYPE_CHECKING:\n    import hatbus.trainer", PRIVATE),
    ],
)
def test_import_that_breaks_a_rule_is_refused_with_its_line(
    sources: Path, file: str, line: str, broken: str
) -> None:
    path = sources / file
    path.write_text(f"{path.read_text() if path.exists() else ''}\n{line}\n")
    done = checked(sources)
    assert done.returncode == 1
    assert broken in " ".join(done.stdout.split())


def test_a_room_holds_fourteen_files_and_a_file_four_hundred_lines() -> None:
    core = [*ROOT.glob("hatbus/**/*.py")]
    files = [*core, *ROOT.glob("plugins/*/src/**/*.py")]
    rooms = Counter(path.parent for path in core)
    most = {ROOT / "hatbus/testing": 20}
    assert [room for room, count in rooms.items() if count > most.get(room, 14)] == []
    assert [path for path in files if len(path.read_text("utf-8").splitlines()) > 400] == []
