"""Commands of distributions: listed with no import, run when asked for, refused alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stranger import hatbus, install

from hatbus.cli import COMMANDS, main
from hatbus.discovery import first_party
from hatbus.testing import PluginProject

pytest_plugins = ["hatbus.testing"]
STAND = '''
import argparse
from hatbus.errors import DataError

def stand(words):
    """Counts hats, 100% of them.

    More.
    """
    parser = argparse.ArgumentParser("hatbus stand", description=stand.__doc__)
    parser.add_argument("hats", nargs="+")
    hats = parser.parse_args(words).hats
    if hats == ["none"]:
        raise DataError("no hat; give one")
    if hats == ["bug"]:
        raise ValueError("a bug")
    if hats == ["text"]:
        return "many"
    print(len(hats))
    return None if len(hats) < 3 else 9
'''


@pytest.fixture
def project(plugin_project: PluginProject) -> PluginProject:
    """An installed stranger's command."""
    plugin_project.install("acme-hats", {}, {"acme.py": STAND}, commands={"stand": "acme:stand"})
    return plugin_project


class Terminal:
    """``hatbus`` as if typed, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command."""
        try:
            code = main(words)
        except SystemExit as end:  # argparse has shown its help, or refused
            code = int(end.code or 0)
        return code, *self.capsys.readouterr()

    def refused(self, *words: str) -> str:
        """The one line that a mistake is told in."""
        code, out, err = self(*words)
        (line,) = err.splitlines()
        assert (code, out) == (2, "")
        return line.removeprefix("hatbus: error: ")

    def listed(self) -> dict[str, str]:
        """Command to its line in ``hatbus --help``."""
        code, out, err = self("--help")
        assert (code, err) == (0, "")
        return dict(line.split(None, 1) for line in out.splitlines() if line.startswith("    "))


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "200")
    return Terminal(capsys)


def test_names_of_hatbus_own_commands_are_reserved() -> None:
    own = {name for name, owner in first_party.COMMANDS.items() if owner == "hatbus"}
    assert own == set(COMMANDS)


def test_the_help_lists_commands_with_the_first_line_of_their_docstring_and_imports_nothing(
    tmp_path: Path,
) -> None:
    modules = {
        name: f"raise SystemExit('{name} was imported')\n" for name in ("torch.py", "acme.py")
    }
    modules["acme.py"] += STAND
    install(tmp_path, "acme-hats", {}, modules, commands={"stand": "acme:stand"})
    done = hatbus("--help", site=tmp_path, cwd=tmp_path, COLUMNS="200")
    assert (done.returncode, done.stderr) == (0, "")
    assert "    stand        Counts hats, 100% of them (acme-hats)\n" in done.stdout
    assert "(hatbus-checkpoint)\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "out"),
    [(["a", "b"], 0, "2\n"), (["a", "b", "c"], 9, "3\n"), (["--help"], 0, "usage: hatbus stand")],
)
def test_a_command_is_given_the_words_behind_it_and_returns_the_exit_code(
    project: PluginProject, terminal: Terminal, words: list[str], code: int, out: str
) -> None:
    found = terminal("stand", *words)
    assert (found[0], found[2]) == (code, "")
    assert found[1].startswith(out)


def test_a_users_mistake_in_a_command_is_one_line_and_its_own_bug_a_traceback(
    project: PluginProject, terminal: Terminal
) -> None:
    assert terminal("stand", "none") == (5, "", "hatbus: error: no hat; give one\n")
    code, _, err = terminal("stand", "bug")
    assert code == 3
    assert err.startswith("Traceback")
    last = "hatbus: error: command 'stand' (acme-hats 1.0) failed with ValueError: a bug"
    assert err.splitlines()[-1] == last
    assert terminal.refused("stand", "text") == (
        "command 'stand' of acme-hats 1.0 returned 'many'; accepted: an exit code (a number), "
        "or None"
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("broken:stand", " cannot be loaded from 'broken:stand': ZeroDivisionError: division by"),
        ("gone:stand", " cannot be loaded from 'gone:stand': ModuleNotFoundError: No module named"),
        ("acme:gone", " cannot be loaded from 'acme:gone': AttributeError: module 'acme' has no"),
        ("acme", ": 'acme' names none; accepted: 'package.module:function'"),
        ("", ": '' names none; accepted: 'package.module:function'"),
        (
            "acme:NUMBER",
            ": 'acme:NUMBER' is a int; accepted: a function of one argument, the words",
        ),
        ("acme:Hat", ": 'acme:Hat' is a class; accepted: a function of one argument"),
        ("acme:nothing", ": 'acme:nothing' cannot be called (too many positional arguments); acc"),
    ],
)
def test_a_broken_command_is_one_line_when_it_is_asked_for_and_harms_no_other(
    project: PluginProject, terminal: Terminal, value: str, message: str
) -> None:
    files = {"acme.py": f"{STAND}\nNUMBER = 1\nclass Hat: ...\ndef nothing(): ...\n"}
    files["broken.py"] = "1 / 0"
    project.install("evil", {}, files, commands={"evil": value})
    assert terminal.refused("evil").startswith(f"command 'evil' of evil 1.0{message}")
    assert terminal("stand", "a") == (0, "1\n", "")
    assert {"evil", "stand"} <= set(terminal.listed())
    assert terminal("events")[2] == ""


def test_two_distributions_with_one_command_are_named_when_it_is_asked_for(
    project: PluginProject, terminal: Terminal
) -> None:
    project.install("other", {}, {}, commands={"stand": "other:stand"})
    assert terminal.listed()["stand"] == "offered by acme-hats and other; uninstall one of them"
    assert terminal.refused("stand", "a") == (
        "command 'stand' is offered by acme-hats 1.0 (acme:stand) and other 1.0 (other:stand); "
        "uninstall one of them"
    )


def test_a_reserved_command_of_a_stranger_is_refused_naming_both(
    project: PluginProject, terminal: Terminal
) -> None:
    project.install("evil", {}, {}, commands={"export": "evil:export"})
    assert terminal.refused("export", "x") == (
        "command 'export' is offered by evil 1.0 (evil:export), but the name is reserved for "
        "hatbus-checkpoint; uninstall evil, or ask its author for another name"
    )


def test_a_command_named_like_hatbus_own_is_told_and_hatbus_own_runs(
    project: PluginProject, terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    project.install("evil", {}, {"evil.py": "1 / 0"}, commands={"events": "evil:events"})
    assert terminal.listed()["events"] == "show the events that a plugin can hook"
    code, out, err = terminal("events")
    assert (code, out[:9]) == (0, "run_loop ")
    assert err == (
        "hatbus: warning: command 'events' is offered by evil 1.0 (evil:events), but the name is "
        "reserved for hatbus; uninstall evil, or ask its author for another name\n"
    )
    assert terminal("plugins")[2] == ""


def test_the_allow_list_holds_for_commands_too(
    project: PluginProject, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATBUS_ALLOW", "acme_hats")
    assert terminal("stand", "a") == (0, "1\n", "")
    monkeypatch.setenv("HATBUS_ALLOW", "other")
    assert terminal.refused("stand", "a") == (
        "command 'stand' of acme-hats 1.0 is refused: HATBUS_ALLOW='other' does not name "
        "'acme-hats'"
    )
    assert terminal.listed()["stand"] == "of acme-hats, refused by HATBUS_ALLOW"


def test_a_command_for_another_hatbus_is_refused_before_it_is_imported(
    project: PluginProject, terminal: Terminal
) -> None:
    commands = {"old": "old:old"}
    project.install("old", {}, {"old.py": "1 / 0"}, commands=commands, requires="hatbus<0.1")
    line = terminal.refused("old")
    assert line.startswith("command 'old' of old 1.0 needs hatbus<0.1, and this is hatbus ")


def test_metadata_that_cannot_be_read_is_one_line_when_its_command_is_asked_for(
    project: PluginProject, terminal: Terminal
) -> None:
    file = project.site / "acme_hats-1.0.dist-info" / "entry_points.txt"
    file.write_text(f"{file.read_text()}\nno equals sign\n")
    line = terminal.refused("stand", "a")
    assert line.startswith(f"command 'stand' of acme_hats: {str(file.parent)!r} cannot be read: ")
    assert line.endswith("; install acme_hats again")


def test_a_command_that_is_not_installed_says_who_offers_it_and_how_to_install_it(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [p for p in sys.path if not any(Path(p).glob("hatbus_checkpoint-*.dist-info"))]
    monkeypatch.setattr(sys, "path", folders)
    assert terminal.refused("checkpoints", "x") == (
        "unknown command 'checkpoints'; it comes with hatbus-checkpoint, which is not installed: "
        "python -m pip install hatbus-checkpoint"
    )


def test_a_distribution_that_should_bring_a_command_and_does_not_is_told(
    plugin_project: PluginProject, terminal: Terminal
) -> None:
    plugin_project.install("hatbus-checkpoint", {}, {}, version="0.0.9")
    line = terminal.refused("export", "x")
    assert "it comes with hatbus-checkpoint, but hatbus-checkpoint 0.0.9 as it is" in line
    assert "python -m pip install --upgrade hatbus-checkpoint" in line


def test_an_unknown_command_gets_the_nearest_of_all(
    project: PluginProject, terminal: Terminal
) -> None:
    assert terminal.refused("stnd") == "unknown command 'stnd'; did you mean 'stand'?"
    assert terminal.refused("rnu") == "unknown command 'rnu'; did you mean 'run'?"
    assert terminal.refused("--quick", "stnd").startswith("unknown command 'stnd'; did you")
