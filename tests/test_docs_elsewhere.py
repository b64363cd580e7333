"""What test_docs.py does not run: marked blocks, other programs, commands inside of sentences."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from pages import DOCS, FENCE, all_blocks, blocks, commands, done, refresh
from stranger import CHECKOUT, install

import hatbus
from hatbus.cli import parser_of
from hatbus.discovery.entry_points import lookup
from hatbus.errors import PluginError
from hatbus.testing import PluginProject

pytest_plugins = ["hatbus.testing"]
PAGES = [*refresh.pages(), CHECKOUT / "CONTRIBUTING.md"]
NO_RUN = {
    "testing-a-plugin.md": ["python", "python"],
    "writing-a-plugin.md": ["toml"],
    "publishing.md": ["console", "sh"],
}
"""The blocks that are marked ``no-run``; each has a test here, but the upload to an index."""
OTHERS = {
    r"python -m pip install (tox|build|twine|pytest)": "",  # from an index
    r"python -m pip install (-c constraints\.txt )?(-e )?[^-].*": "paths_exist",
    r"python -m twine upload dist/\*": "",
    r"python -m pytest \S+": "paths_exist",
    r"python -m pytest": "",  # of the tutorial: test_docs.py
    r"tox( -e \w+)?": "env_exists",
    r"tensorboard --logdir \S+": "",
    r"hatbus .*": "",  # test_docs.py
}
"""Commands of other programs that pages show, and what is looked at."""


def no_run(page: str, language: str) -> list[str]:
    """The texts of a page's blocks that are marked ``no-run``."""
    found = all_blocks(DOCS / page)
    return [b.text for b in found if b.language == language and "no-run" in b.words]


def test_no_block_is_left_out_but_those_looked_at_here() -> None:
    found = {
        page.name: [b.language for b in all_blocks(page) if "no-run" in b.words]
        for page in refresh.pages()
    }
    assert {name: languages for name, languages in found.items() if languages} == NO_RUN


def test_every_fence_has_a_language_that_some_test_knows() -> None:
    known = {"", "sh", "python", "toml", "console", "text", "{toctree}", "{literalinclude}"}
    for page in refresh.pages():
        assert {b.language for b in all_blocks(page)} <= known, page.name


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
    names = re.findall(r"^\[testenv:\{?([\w,]+)\}?\]", text, re.MULTILINE)
    return {"py", *",".join(names).split(",")}


def test_chores_of_the_contributing_guide_are_environments_of_tox() -> None:
    text = (CHECKOUT / "CONTRIBUTING.md").read_text("utf-8")
    assert set(re.findall(r"tox (?:-r )?-e (\w+)", text)) <= environments()


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

    monkeypatch.setattr(argparse.ArgumentParser, "error", refuse)
    for command in inline(page):
        words = shlex.split(command)[1:]
        if words != ["--version"] and not {"--help", "..."} & set(words):
            with contextlib.suppress(SystemExit):
                parser_of(words).parse_args(words)


def test_the_job_of_the_testing_page_publishes_the_mean(tmp_path: Path) -> None:
    python = [b.text for b in all_blocks(DOCS / "testing-a-plugin.md") if b.language == "python"]
    switched_on, contract, *_, job = python
    plugin, _, under_test = contract.partition("\nclass TestMeanLoss")
    site = tmp_path / "site"
    install(site, "mean", {"mean_loss": "mean_loss:MeanLoss"}, {"mean_loss.py": plugin})
    imports = "from hatbus.testing import PluginContract\nfrom mean_loss import MeanLoss\n"
    test = f"{switched_on}\n{imports}\n\nclass TestMeanLoss{under_test}\n{job}"
    (tmp_path / "test_mean.py").write_text(test)
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_job or test_registers")
    out = done(sys.executable, *words, tmp_path / "test_mean.py", site=site)
    assert "2 passed" in out


def test_the_table_of_the_tutorial_is_taken_by_its_plugin() -> None:
    (table,) = no_run("writing-a-plugin.md", "toml")
    (plugin,) = tomllib.loads(table)["plugins"].items()
    python = blocks(DOCS / "writing-a-plugin.md", "python")
    source = next(block.text for block in python if "class LossLimit" in block.text)
    names: dict[str, object] = {"__name__": "tutorial"}
    exec(source, names)
    limit = names["LossLimit"](**plugin[1])  # type: ignore[operator]
    assert plugin[0] == "loss_limit"
    assert (limit.limit, limit.times) == (0.05, 2)


def test_a_plugin_of_another_version_is_refused_in_the_words_of_the_page(
    plugin_project: PluginProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin_project.install(
        "hatbus-loss-watch",
        {"loss_watch": "loss_watch:LossWatch"},
        {},
        version="0.1.0",
        requires="hatbus<0.2,>=0.1",
    )
    monkeypatch.setattr(hatbus, "__version__", "0.3.0")
    with pytest.raises(PluginError) as caught:
        lookup("loss_watch").load()
    (shown,) = no_run("publishing.md", "console")
    assert f"hatbus: error: {caught.value}" in " ".join(shown.split())


def test_the_readme_of_a_new_plugin_tells_commands_that_run() -> None:
    text = (CHECKOUT / "hatbus" / "authoring" / "templates" / "plugin" / "README.md.txt").read_text(
        "utf-8"
    )
    workflow = (
        CHECKOUT / "hatbus" / "authoring" / "templates" / "plugin" / "ci.yml.txt"
    ).read_text("utf-8")
    told = re.findall(r"^    (\w.*)$", text, re.MULTILINE)
    assert told[1:] == [
        'python -m pip install -e ".[test]"',
        "python -m pytest",
        "hatbus plugins check .",
        "python -m build",
    ]
    for command in told[2:]:
        assert f"- run: {command}\n" in workflow
