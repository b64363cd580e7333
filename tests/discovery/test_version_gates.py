"""Plugins and hatbus of different ages: refused with a word, or working on."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from stranger import CHECKOUT, hatbus, install_recorder, write_job

from hatbus import Bus, hookimpl
from hatbus.cli import main
from hatbus.discovery.entry_points import lookup
from hatbus.discovery.version_gate import misfit, requirements_on_hatbus
from hatbus.errors import PluginError
from hatbus.events import payload
from hatbus.events.payload import Deprecated
from hatbus.testing import PluginProject

pytest_plugins = ["hatbus.testing"]
SOURCE = "raise SystemError('imported')"
WORKS = """
from hatbus import hookimpl

class It:
    @hookimpl
    def on_step_end(self): ...
"""


def offer(project: PluginProject, requires: str, source: str = WORKS) -> None:
    project.install("acme", {"acme_it": "acme_it:It"}, {"acme_it.py": source}, requires=requires)


@pytest.mark.parametrize("requires", ["hatbus>=9", "hatbus<0.1", "HatBus ==0.0.*", "hatbus~=7.1"])
def test_plugin_made_for_another_hatbus_is_refused_without_importing_it(
    requires: str, plugin_project: PluginProject
) -> None:
    offer(plugin_project, requires, SOURCE)
    with pytest.raises(PluginError) as caught:
        lookup("acme_it").load()
    (line,) = str(caught.value).splitlines()
    assert line.startswith("plugin 'acme_it' of acme 1.0 needs hatbus")
    assert "and this is hatbus 0." in line
    assert line.endswith("python -m pip install --upgrade hatbus acme")


@pytest.mark.parametrize(
    "requires",
    [
        "hatbus",
        "hatbus>=0.1",
        "hatbus<0.2,>=0.1",
        "hatbus[all]>=0.1",
        "hatbus>=9; extra == 'new'",
        "hatbus>=9; python_version < '3'",
        "hatbus-lr>=9",
        "hatbus is what I need",
        "torch>=2",
    ],
)
def test_plugin_that_fits_or_does_not_say_is_loaded(
    requires: str, plugin_project: PluginProject
) -> None:
    offer(plugin_project, requires)
    assert misfit(lookup("acme_it")) == ""
    assert lookup("acme_it").load().__name__ == "It"


def test_requirements_on_hatbus_are_told_from_those_on_its_plugins() -> None:
    found = requirements_on_hatbus(["hatbus-lr>=1", "Hatbus>=0.1", "torch", "hatbus[all]<3"])
    assert [str(one.specifier) for one in found] == [">=0.1", "<3"]


def test_list_says_which_plugins_do_not_fit(
    plugin_project: PluginProject, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(plugin_project, "hatbus>=9", SOURCE)
    assert main(["plugins"]) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("acme_it")]
    assert "needs hatbus>=9, and this is hatbus 0." in line


def test_run_refuses_it_in_one_line_only_when_it_is_enabled(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install_recorder(site)
    metadata = next(site.glob("*.dist-info")) / "METADATA"
    metadata.write_text(metadata.read_text().replace("hatbus<0.2,>=0.1", "hatbus>=9"))
    job = write_job(tmp_path, "[plugins.recorder]\npath = 'x'\n")
    done = hatbus("run", str(job), site=site, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("hatbus: error: plugin 'recorder' of acme-hats 1.0 needs hatbus>=9")
    assert hatbus("run", str(job), "-p", "no:recorder", site=site, cwd=tmp_path).returncode == 0


FUTURE = """
import sys
import hatbus.events.payload as payload

# a later hatbus: every event carries one argument more
payload.ARGUMENTS["phase"] = ("str", "what the run is doing")
for name in ("LOOP", "STEP", "BATCH"):
    setattr(payload, name, (*getattr(payload, name), "phase"))
from hatbus.loop.context import Context
Context.phase = "warm"

from hatbus import hookimpl
from hatbus.discovery.entry_points import lookup
from hatbus.testing import tiny_trainer

class New:
    heard = []
    @hookimpl
    def on_step_end(self, phase, global_step_id):
        self.heard.append((phase, global_step_id))
    @hookimpl
    def on_log(self, logs, phase):
        self.heard.append((phase, sorted(logs)))

old = lookup("recorder").load()(path=sys.argv[1])
tiny_trainer([old, New()]).fit(num_steps=2)
log = ("warm", ["train/loss"])
assert New.heard == [("warm", 0), log, ("warm", 1), log]  # the old one is of stage report
"""


def test_an_old_plugin_works_when_events_carry_an_argument_more(tmp_path: Path) -> None:
    install_recorder(tmp_path / "site")
    path = f"{CHECKOUT}:{tmp_path / 'site'}"
    subprocess.run(
        [sys.executable, "-W", "error", "-c", FUTURE, str(tmp_path / "losses")],
        check=True, env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, cwd=tmp_path,
    )  # fmt: skip
    lines = (tmp_path / "losses").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1"]


class Old:
    """Names an argument that will go."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    @hookimpl
    def on_step_end(self, num_epochs: int, global_step_id: int) -> None:
        self.heard.append((num_epochs, global_step_id))


def test_a_deprecated_argument_warns_once_and_is_still_given(
    monkeypatch: pytest.MonkeyPatch, tiny_trainer: Any
) -> None:
    monkeypatch.setitem(
        payload.DEPRECATED, "num_epochs", Deprecated("0.3", "'ctx.num_epochs'", "0.5")
    )
    old = Old()
    with pytest.warns(DeprecationWarning, match="'num_epochs'") as caught:
        Bus({"old": old})
    (one,) = caught
    assert "plugin 'old' (" in str(one.message)
    assert str(one.message).endswith(
        "Old): on_step_end wants 'num_epochs', which is deprecated since hatbus 0.3 and goes in "
        "0.5; use 'ctx.num_epochs'"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_trainer({"old": old}).fit(num_epochs=1)
    assert old.heard == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_a_deprecated_argument_is_marked_in_the_list_of_events(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Deprecated("0.3", "'ctx.num_epochs'", "0.5")
    monkeypatch.setitem(payload.DEPRECATED, "num_epochs", gone)
    assert main(["events", "on_step_end"]) == 0
    assert "(deprecated since 0.3; use 'ctx.num_epochs')" in capsys.readouterr().out


def test_nothing_is_deprecated_that_no_event_carries() -> None:
    assert set(payload.DEPRECATED) <= set(payload.ARGUMENTS)
