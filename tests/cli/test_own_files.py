"""A plugin class in a file of one's own is shown, checked and added by ``FILE.py:Class``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stranger import write_job

from hatbus.cli import main
from hatbus.jobs import read_job
from hatbus.testing import PluginProject

pytest_plugins = ["hatbus.testing"]
MINE = '''
from pathlib import Path
from hatbus import hookimpl, plugin


@plugin(stage="report")
class LossWatch:
    """Watches.

    Args:
        times: how often.
    """

    def __init__(self, times: int = 3) -> None:
        self.times = times

    @hookimpl
    def on_loop_end(self, ctx):
        Path("seen.txt").write_text(str(self.times))


class Slip:
    @hookimpl
    def on_step_edn(self, ctx): ...


class Model: ...
'''
BROKEN = "class Hat:\n    def on_step_end(self)\n        pass\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    Path("broken.py").write_text(BROKEN)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main([*words])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_a_class_is_shown_like_an_installed_plugin(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = said(capsys, "plugins", "show", "mine.py:LossWatch")
    assert code == 0
    assert out.startswith("loss_watch  (mine.py:LossWatch)\n\nWatches.\n")
    assert "stage: report\nevents: on_loop_end\noptions:\n  times: int = 3\nfile: mine.py:7" in out
    assert "-p mine.py:LossWatch" in out
    _, out, _ = said(capsys, "plugins", "show", "mine.py", "--json")
    assert [one["name"] for one in json.loads(out)] == ["loss_watch", "slip"]


def test_a_file_or_a_class_of_it_is_checked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "plugins", "check", "mine.py")
    assert code == 2
    assert out.splitlines()[0] == "LossWatch: ok"
    assert out.splitlines()[1].startswith("Slip: mine.py line 24: on_step_edn implements unknown")
    assert said(capsys, "plugins", "check", "mine.py:LossWatch") == (0, "LossWatch: ok\n", "")


@pytest.mark.parametrize("what", ["show", "check"])
@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("mine.py:LossWach", "mine.py has no class 'LossWach'; did you mean 'LossWatch'?"),
        ("min.py:LossWatch", "no file 'min.py'; did you mean 'mine.py'?"),
        ("broken.py", "syntax error in broken.py line 2: expected ':'"),
        ("empty.py", "empty.py holds no plugin: no class in it has @hookimpl above a method"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], what: str, word: str, told: str
) -> None:
    Path("empty.py").write_text("class Model: ...\n")
    code, _, err = said(capsys, "plugins", what, word)
    assert code == 2
    assert err.startswith(f"hatbus: error: {told}")


def test_a_syntax_error_has_its_line_and_a_caret(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, err = said(capsys, "plugins", "check", "broken.py:Hat")
    _, line, caret = (text.removeprefix("hatbus: error: ") for text in err.splitlines())
    assert line.strip() == "def on_step_end(self)"
    assert caret.index("^") == len(line)


def test_an_installed_plugin_with_a_syntax_error_is_listed_and_shown_with_it(
    plugin_project: PluginProject, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin_project.install("acme", {"hat": "acme_hat:Hat"}, {"acme_hat.py": BROKEN})
    _, out, _ = said(capsys, "plugins")
    (row,) = (line for line in out.splitlines() if line.startswith("hat "))
    assert "syntax error in acme_hat.py line 2: expected ':'" in row
    _, out, _ = said(capsys, "plugins", "show", "hat")
    *_, message, line, caret = out.splitlines()
    assert message.startswith("syntax error in ")
    assert line.strip() == "def on_step_end(self)"
    assert caret.index("^") == len(line)


def test_a_class_is_added_to_a_run_by_its_file(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(here / "job", "")
    (here / "job" / "mine.py").write_text(MINE)
    words = ("-p", "mine.py:LossWatch", "-o", "loss_watch.times=7", "--quiet")
    assert said(capsys, "run", str(job), *words)[0] == 0
    assert (here / "seen.txt").read_text() == "7"
    off = read_job(job, ("mine.py:LossWatch", "no:loss_watch"))
    assert not off.plugins["loss_watch"].enabled
    code, _, err = said(capsys, "run", str(job), "-p", "mine.py:LossWach")
    assert code == 2
    assert "did you mean 'LossWatch'?" in err
    code, _, err = said(capsys, "run", str(job), "-p", "mine.py:Slip", "-p", "other.py:Slip")
    assert code == 2
    assert "-p other.py:Slip: the job has another plugin 'slip'; give yours a name" in err


def test_an_unknown_plugin_is_told_where_it_could_come_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, _, err = said(capsys, "plugins", "show", "zzz")
    assert err.startswith("hatbus: error: unknown plugin 'zzz'; nothing that is installed offers")
    assert "FILE.py:Class" in err
