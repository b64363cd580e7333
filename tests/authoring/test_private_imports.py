"""``hatbus plugins check`` advises against private names of hatbus, and knows the public way."""

from __future__ import annotations

from pathlib import Path

import pytest

from hatbus.authoring.private_imports import private_imports
from hatbus.cli.check import check_folder
from hatbus.discovery.class_source import Sources

HAT = """\
from hatbus import hookimpl, plugin
{line}

@plugin(stage="monitor")
class Hat:
    \"\"\"Watches.\"\"\"

    @hookimpl
    def on_step_end(self): ...
"""
PROJECT = """\
[project]
name = "acme-hats"
version = "1.0"
description = "Hats."
readme = "README.md"
license = "MIT"
requires-python = ">=3.11"
dependencies = ["hatbus>=0.1,<0.2"]

[project.entry-points."hatbus.plugins"]
hat = "acme.hat:Hat"
"""


def written(folder: Path, line: str) -> Path:
    """A package with a plugin that has this line."""
    (folder / "acme").mkdir()
    (folder / "acme/__init__.py").write_text("")
    (folder / "acme/hat.py").write_text(HAT.format(line=line))
    (folder / "pyproject.toml").write_text(PROJECT)
    return folder


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        (
            "from hatbus.loop.control import Request",
            "hatbus.loop.control, which is private and may change; write `from hatbus.loop import",
        ),
        ("from hatbus.loop.context import Context", "write `from hatbus import Context`"),
        ("from hatbus.trainer import Trainer", "write `from hatbus import Trainer`"),
        ("from hatbus.loop import control", "imports control from hatbus.loop, which is private"),
        ("import hatbus.bus.bus", "imports hatbus.bus.bus, which is private and may change; the "),
        ("from hatbus.rng import _torch", "imports _torch from hatbus.rng, which is private"),
        ("from hatbus.loop.module_names import find_modules", "import find_module` is public"),
        ("from hatbus.control import Request", "write `from hatbus.loop import Request`"),
        ("def f():\n    from hatbus.loop.loop import is_done", "`from hatbus.loop import is_done`"),
    ],
)
def test_a_private_name_is_advice_that_says_the_public_way(
    line: str, advice: str, tmp_path: Path
) -> None:
    found = check_folder(written(tmp_path, line))["hat"]
    assert found.problems == []
    (said,) = found.advice
    assert said.startswith(f"hat.py line {2 + line.count(chr(10))}: imports ")
    assert advice in said


@pytest.mark.parametrize(
    "line",
    [
        "from hatbus import Context, discovery, rng",
        "import hatbus.loop, hatbus.errors",
        "from hatbus.callbacks import Checkpoint, Recorder",
        "from hatbus.loop import find_module as find",
        "from hatbus.testing import PluginContract",
        "import hatbus_lr.updater",
    ],
)
def test_public_names_need_no_advice(line: str, tmp_path: Path) -> None:
    assert check_folder(written(tmp_path, line))["hat"].advice == []


def test_modules_that_the_plugins_module_imports_are_read_as_well(tmp_path: Path) -> None:
    folder = written(tmp_path, "from .feathers import feather")
    (folder / "acme/feathers.py").write_text("from hatbus.bus.order import resolve\n")
    (folder / "acme/unused.py").write_text("import hatbus.bus.order\n")
    (said,) = private_imports(Sources([folder]), "acme.hat")
    assert said == (
        "feathers.py line 1: imports resolve from hatbus.bus.order, which is private and may "
        "change; the reference in hatbus's docs has every public name"
    )
