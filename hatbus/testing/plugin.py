"""Fixtures for tests of plugins, and the table of what plugins cost (PYTEST_DONT_REWRITE)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from hatbus import Trainer
    from hatbus.testing.event_log import EventLog
    from hatbus.testing.project import PluginProject
    from hatbus.testing.reads import Reads
    from hatbus.testing.tiny_job import TinyJob


@pytest.fixture
def event_log() -> EventLog:
    """Return a plugin that writes down every event."""
    from hatbus.testing.event_log import EventLog

    return EventLog()


@pytest.fixture
def tiny_trainer() -> Callable[..., Trainer]:
    """Return ``hatbus.testing.tiny_trainer``: a trainer of a tiny net with the given plugins."""
    from hatbus.testing.tiny import tiny_trainer

    return tiny_trainer


@pytest.fixture
def tiny_job(tmp_path: Path) -> Callable[..., TinyJob]:
    """Return ``make(plugins="", run="num_epochs = 2")``, which writes a job into a new folder."""
    from hatbus.testing.tiny_job import TinyJob

    def make(plugins: str = "", run: str = "num_epochs = 2") -> TinyJob:
        return TinyJob(tmp_path / "job", plugins, run)

    return make


@pytest.fixture
def plugin_project(tmp_path: Path) -> Iterator[PluginProject]:
    """Yield a folder into which plugins can be installed; they are gone after the test."""
    from hatbus.testing.project import PluginProject

    project = PluginProject(tmp_path / "site")
    yield project
    project.remove()


@pytest.fixture
def reads() -> Iterator[Reads]:
    """Yield a count of the values that are read from tensors in the test."""
    from hatbus.testing.reads import Reads

    with Reads() as counted:
        yield counted


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Shows what the plugins under contract cost a step."""
    passed = terminalreporter.stats.get("passed", ())
    found = [v for r in passed for k, v in r.user_properties if k == "hatbus_us_per_step"]
    if found:
        terminalreporter.section("hatbus: cost of a step")
        for name, cost in sorted(found, key=lambda pair: -pair[1]):
            terminalreporter.write_line(f"{name:<32}{cost:>10.1f} us")
