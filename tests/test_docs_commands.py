"""Commands of other programs, and those inside of sentences, name what is there."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
from pathlib import Path

import pytest
from pages import FENCE, all_blocks, blocks, commands, refresh
from stranger import CHECKOUT

from hatbus.cli import COMMANDS, of_plugins, parser_of

PAGES = [*refresh.pages(), CHECKOUT / "CONTRIBUTING.md"]


OTHERS = {
    r"python -m pip install (tox|build|twine|pytest)": "",  # from an index
    r"python -m pip install (-c constraints(-trackers)?\.txt )?(-e )?[^-].*": "paths_exist",
    r"python -m twine upload dist/\*": "",
    r"python -m pytest \S+": "paths_exist",
    r"python -m pytest": "",  # of the tutorial: test_docs.py
    r"tox( -e \w+)?": "env_exists",
    r"tensorboard --logdir \S+": "",
    r"(#|srun |code=|\[ \$code |scontrol |exit ).*": "",  # a script for SLURM: test_docs_no_run.py
    r"hatbus .*": "",  # test_docs.py
    r"torchrun .*": "",  # test_many_processes_page.py
}
"""Commands of other programs that pages show, and what is looked at."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(CHECKOUT).as_posix())
def test_commands_of_other_programs_name_what_is_there(page: Path) -> None:
    if page.name == "CONTRIBUTING.md":
        shown = [b for b in all_blocks(page) if b.text.startswith("python -m pip")]
    else:
        shown = blocks(page, "", "sh")
    shown += [b for b in all_blocks(page) if b.language == "sh" and "no-run" in b.words]
    for command in filter(None, commands(page, shown)):
        looked_at = [what for pattern, what in OTHERS.items() if re.fullmatch(pattern, command)]
        assert looked_at, (
            f"{page.name}: {command!r} is run by no test; say in OTHERS what sees to it"
        )
        words = shlex.split(command)
        if looked_at[0] == "paths_exist":
            paths = [w.partition("[")[0] for w in words[4:] if not w.startswith("-")]
            assert all((CHECKOUT / path).exists() for path in paths), command
        if "-e" in words and looked_at[0] == "env_exists":
            assert words[-1] in environments(), command


def environments() -> set[str]:
    """The environments of tox.ini."""
    text = (CHECKOUT / "tox.ini").read_text("utf-8")
    names = re.findall(r"^\[testenv:\{?([\w,-]+)\}?\]", text, re.MULTILINE)
    return {"py", *",".join(names).split(",")}


def test_chores_of_the_contributing_guide_are_environments_of_tox() -> None:
    text = (CHECKOUT / "CONTRIBUTING.md").read_text("utf-8")
    assert set(re.findall(r"tox (?:-r )?-e ([\w-]+)", text)) <= environments()


def inline(page: Path) -> list[str]:
    """The ``hatbus`` commands in a page's text and tables."""
    text = FENCE.sub("", page.read_text("utf-8"))
    found = re.findall(r"`((?:torchrun .*-m )?hatbus [^`]+)`", text)
    return [re.sub(r"[\[\]]", "", command).rpartition("-m ")[2] for command in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(CHECKOUT).as_posix())
def test_inline_commands_are_ones_that_hatbus_takes(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(parser: argparse.ArgumentParser, message: str) -> None:
        assert "required" in message, (
            f"{page.name}: {command!r}: {message}"
        )  # only named, not given
        raise SystemExit

    def parse_only(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
        parse(parser, words)
        raise SystemExit  # a command of a plugin goes no further

    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "error", refuse)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    for command in inline(page):
        words = shlex.split(command)[1:]
        if words != ["--version"] and not {"--help", "..."} & set(words):
            with contextlib.suppress(SystemExit):
                if words[0] in COMMANDS:
                    parser_of(words).parse_args(words)
                else:
                    of_plugins.run(of_plugins.find(words[0]), words[1:])
