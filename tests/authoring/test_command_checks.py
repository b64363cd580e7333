"""hatbus plugins check: what is wrong with a distribution's commands."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from hatbus.authoring.checking import Offer
from hatbus.authoring.command_checks import command_advice, command_problems
from hatbus.cli.check import check_folder, check_installed
from hatbus.discovery.class_source import Sources
from hatbus.testing import PluginProject

pytest_plugins = ["hatbus.testing"]
GOOD = """
    def stand(words):
        \"\"\"Counts.\"\"\"
"""


@pytest.mark.parametrize(
    ("name", "value", "source", "message"),
    [
        ("stand", "acme", GOOD, "'acme' names none; accepted: 'package.module:function'"),
        ("stand", "acme:sit", GOOD, "module 'acme' has no function 'sit'"),
        ("stand", "acme.hats:stand", GOOD, "module 'acme.hats' is not there"),
        ("stand", "acme:stand", "def stand(:", "module 'acme' does not parse: acme.py line 1:"),
        ("stand", "acme:stand", "def stand(): ...", "line 1: stand must take one argument, the"),
        ("stand", "acme:stand", "def stand(a, b): ...", "must take one argument"),
        ("stand", "acme:stand", "def stand(a, *, b): ...", "must take one argument"),
        ("stand", "acme:stand", "async def stand(words): ...", "is async; a command is a plain"),
        ("My_Stand", "acme:stand", GOOD, "the name 'My_Stand' is awkward to type; write it like"),
        ("run", "acme:stand", GOOD, "the name 'run' is reserved for hatbus; choose another"),
        ("export", "acme:stand", GOOD, "the name 'export' is reserved for hatbus-checkpoint;"),
    ],
)
def test_what_is_wrong_with_a_command_is_read_from_its_source(
    tmp_path: Path, name: str, value: str, source: str, message: str
) -> None:
    (tmp_path / "acme.py").write_text(dedent(source))
    (problem,) = command_problems(Offer(name, value, "acme"), Sources([tmp_path]))
    assert message in problem


@pytest.mark.parametrize(
    "source",
    [
        GOOD,
        "def stand(*words): ...",
        "def stand(words, out=None): ...",
        "from acme.inner import stand",
        "stand = print",
    ],
)
def test_a_command_may_be_written_in_many_ways(tmp_path: Path, source: str) -> None:
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "__init__.py").write_text(dedent(source))
    (tmp_path / "acme" / "inner.py").write_text("def stand(words): ...\n")
    assert command_problems(Offer("stand", "acme:stand", "acme"), Sources([tmp_path])) == []


def test_a_command_without_a_docstring_is_advised_to_have_one(tmp_path: Path) -> None:
    (tmp_path / "acme.py").write_text(
        "def stand(words): ...\n" + dedent(GOOD).replace("stand", "sit")
    )
    offers = (Offer(name, f"acme:{name}", "acme") for name in ("stand", "sit"))
    assert [command_advice(offer, Sources([tmp_path])) for offer in offers] == [
        ["has no docstring, whose first line is what `hatbus --help` shows"],
        [],
    ]


def test_a_command_is_advised_against_private_names_and_an_early_torch(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "__init__.py").write_text("import torch\n")
    source = "from hatbus.loop.loop import Loop\n" + dedent(GOOD)
    (tmp_path / "acme" / "stand.py").write_text(source)
    offer = Offer("stand", "acme.stand:stand", "acme")
    early, private = command_advice(offer, Sources([tmp_path]))
    assert early.startswith("import acme imports torch")
    assert "hatbus.loop.loop" in private


def test_a_project_that_offers_commands_alone_is_checked(tmp_path: Path) -> None:
    (tmp_path / "acme.py").write_text("def stand(): ...\n")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "acme"\n[project.entry-points."hatbus.commands"]\nstand = "acme:stand"\n'
    )
    report = check_folder(tmp_path)
    assert list(report) == ["acme", "hatbus stand"]
    assert report["hatbus stand"].problems == [
        "line 1: stand must take one argument, the words that follow the command"
    ]


def test_an_installed_command_is_imported_and_compared_with_others(
    plugin_project: PluginProject,
) -> None:
    broken = {"acme.py": "def stand(words): ...\n1 / 0\n", "fine.py": "def sit(words): ...\n"}
    plugin_project.install(
        "acme", {}, broken, commands={"stand": "acme:stand", "sit": "fine:sit", "lie": "fine:sit"}
    )
    plugin_project.install("other", {}, {}, commands={"lie": "other:lie"})
    report = check_installed("acme")
    assert (
        report["hatbus stand"]
        .problems[0]
        .endswith("ZeroDivisionError: division by zero; repair or uninstall acme")
    )
    assert report["hatbus sit"].problems == []
    assert "is offered by acme 1.0 (fine:sit) and other" in report["hatbus lie"].problems[0]
