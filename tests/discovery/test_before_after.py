"""Names in before and after that no plugin has: misspelt, most likely."""

from __future__ import annotations

from pathlib import Path

import pytest
from stranger import hatbus, install_recorder, write_job

from hatbus.cli.check import check_folder
from hatbus.discovery.before_after import strangers

JOB = """
[plugins.mine]
use = "recorder"
path = "losses.txt"
after = ["mine_too", "validation", "recorder", "progres"]
[plugins.mine_too]
use = "late.py:Late"
"""
LATE = """
from hatbus import hookimpl, plugin


@plugin(after=["progress", "late", "minee"])
class Late:
    @hookimpl
    def on_step_end(self): ...
"""


@pytest.mark.parametrize("command", ["run", "explain"])
def test_a_job_is_warned_of_each_name_that_no_plugin_has(command: str, tmp_path: Path) -> None:
    install_recorder(tmp_path / "site")
    job = write_job(tmp_path, JOB)
    (tmp_path / "late.py").write_text(LATE)
    done = hatbus(command, str(job), site=tmp_path / "site", cwd=tmp_path)
    assert done.returncode == 0
    expected = [
        (
            "plugin 'mine' in job.toml [plugins.mine] says after 'progres', which names no plugin; "
            "did you mean 'progress'?"
        ),
        (
            "plugin 'mine_too' in job.toml [plugins.mine_too] says after 'minee', which names no "
            "plugin; did you mean 'mine'?"
        ),
    ]
    assert [line for line in done.stderr.splitlines() if "names no plugin" in line] == expected
    if command == "run":
        (written,) = tmp_path.glob("runs/*/2*/run.log")
        assert all(line in written.read_text() for line in expected)


def test_a_name_that_is_like_no_other_points_at_the_list() -> None:
    place = {"before": "zzz", "after": ("hat",), "stage": "train"}
    found = "says before 'zzz', which names no plugin; `hatbus plugins` lists what is installed"
    assert list(strangers(place, ["hat"])) == [found]
    assert list(strangers({"before": 3, "after": None}, [])) == []  # refused elsewhere


def test_a_class_gets_advice_about_a_name_that_neither_its_package_nor_any_other_has(
    tmp_path: Path,
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "acme"\n[project.entry-points."hatbus.plugins"]\n'
        'late = "late:Late"\nmine = "late:Late"\n'
    )
    (tmp_path / "late.py").write_text(LATE)
    advice = check_folder(tmp_path)["late"].advice
    assert "says after 'minee', which names no plugin; did you mean 'mine'?" in advice
    assert not [line for line in advice if "'late'" in line or "'progress'" in line]
