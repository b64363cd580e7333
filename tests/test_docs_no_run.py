"""Blocks of pages that are marked ``no-run`` are true all the same."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pages import DOCS, all_blocks, blocks, done, refresh
from stranger import install

import hatbus
from hatbus.cli import main
from hatbus.discovery.entry_points import lookup
from hatbus.errors import PluginError
from hatbus.testing import PluginProject

pytest_plugins = ["hatbus.testing"]


NO_RUN = {
    "from-a-plain-script.md": ["python", "python"],  # test_plain_script.py
    "hosts.md": ["python", "python", "python", "python", "toml"],  # tox -e hosts has the libraries
    "testing-a-plugin.md": ["python", "python"],
    "writing-a-plugin.md": ["toml", "toml"],
    "publishing.md": ["console", "sh"],
    "slurm.md": ["sh"],
    "sweep.md": ["python"],  # plugins/hatbus-optuna/tests has Optuna
}
"""The blocks that are marked ``no-run``; each has a test here, but the upload to an index."""


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
    known |= {"py", "pycon"}  # signatures and examples of the reference: test_reference.py
    for page in refresh.pages():
        assert {b.language for b in all_blocks(page)} <= known, page.name


def test_the_script_for_slurm_is_requeued_when_the_run_ends_with_75(tmp_path: Path) -> None:
    (script,) = no_run("how-to/slurm.md", "sh")
    python = f"exec {sys.executable} -m $*"
    commands = {
        "srun": f"#!/bin/bash\n{python} -o run.max_time=0.01\n",
        "scontrol": "#!/bin/bash\necho $* > asked\n",
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    with refresh.workplace() as folder:
        more = {"PATH": path, "SLURM_JOB_ID": "7", "OMP_NUM_THREADS": "1"}
        where = os.pathsep.join(filter(None, [str(DOCS.parent), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, **more, "PYTHONPATH": where}
        ended = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 75, ended.stderr
        assert (folder / "asked").read_text() == "requeue 7\n"


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
    table, _ = no_run("writing-a-plugin.md", "toml")
    (plugin,) = tomllib.loads(table)["plugins"].items()
    python = blocks(DOCS / "writing-a-plugin.md", "python")
    source = next(block.text for block in python if "class LossLimit" in block.text)
    names: dict[str, object] = {"__name__": "tutorial"}
    exec(source, names)
    limit = names["LossLimit"](**plugin[1])  # type: ignore[operator]
    assert plugin[0] == "loss_limit"
    assert (limit.limit, limit.times) == (0.05, 2)


def test_the_command_of_the_tutorial_runs_under_its_name(
    plugin_project: PluginProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, table = no_run("writing-a-plugin.md", "toml")
    commands = tomllib.loads(table)["project"]["entry-points"]["hatbus.commands"]
    python = blocks(DOCS / "writing-a-plugin.md", "python")
    source = next(block.text for block in python if "def limits" in block.text)
    modules = {"hatbus_loss_limit/__init__.py": "", "hatbus_loss_limit/limits.py": source}
    plugin_project.install("hatbus-loss-limit", {}, modules, commands=commands)
    (tmp_path / "log.jsonl").write_text('{"loss_limit/in_a_row": 2}\n{"loss": 1.0}\n')
    assert main(["limits", str(tmp_path / "log.jsonl")]) == 0
    assert capsys.readouterr().out == "at most 2 times in a row\n"


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
