"""hatbus new-plugin: what it writes is sound for every event, and names that cannot be are refused.

acceptance/test_a_stranger_follows_the_docs.py builds, installs, tests and runs one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from hatbus.authoring.new_plugin import (
    _USED,
    LICENSES,
    names_of,
    version_range,
    words_of,
    write_plugin,
)
from hatbus.cli import main
from hatbus.errors import PluginError
from hatbus.events.training import EVENTS

CHECKOUT = Path(__file__).resolve().parents[2]


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


@pytest.mark.timeout(300)
def test_new_plugins_of_every_kind_of_event_pass_their_own_tests(tmp_path: Path) -> None:
    events = ["on_epoch_begin", "on_log", "on_exception", "run_epoch", "skip_batch", "validate"]
    for index, event in enumerate(events):
        write_plugin(names_of(f"acme-hat{index}"), tmp_path / f"hat{index}", event=event)
    path = os.pathsep.join([str(CHECKOUT), *(str(p) for p in tmp_path.glob("*/src"))])
    words = ["-p", "hatbus.testing.plugin", "-W", "error", "--import-mode=importlib", "-q"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-k", "counted or resumes or overhead", "."],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{3 * len(events)} passed" in run.stdout
    assert "hatbus: cost of a step" in run.stdout
    assert re.search(r"^acme_hat4 +\d+\.\d us$", run.stdout, re.MULTILINE)


@pytest.mark.parametrize("event", EVENTS)
def test_new_plugin_of_any_event_is_python_and_sound(
    event: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plugin(names_of("acme-hat"), tmp_path / "hat", event=event)
    for file in (tmp_path / "hat").rglob("*.py"):
        compile(file.read_text(), str(file), "exec")
        assert max(map(len, file.read_text().splitlines())) <= 100
    assert main(["plugins", "check", str(tmp_path / "hat")]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("license_name", LICENSES)
def test_license_is_in_the_metadata_and_in_the_folder(license_name: str, tmp_path: Path) -> None:
    write_plugin(names_of("acme-hat"), tmp_path / "hat", license_name=license_name.lower())
    assert project(tmp_path / "hat")["license"] == license_name
    text = (tmp_path / "hat" / "LICENSE").read_text()
    assert license_name.split("-", maxsplit=1)[0] in text or "Apache License" in text
    assert "$" not in text


def test_names_follow_from_the_package_and_nothing_of_the_template_is_left(tmp_path: Path) -> None:
    files = write_plugin(names_of("hatbus-step-timer"), tmp_path / "it")
    texts = {file: file.read_text() for file in files}
    assert project(tmp_path / "it")["entry-points"] == {
        "hatbus.plugins": {"step_timer": "hatbus_step_timer.step_timer:StepTimer"}
    }
    for text in [*texts.values(), *map(str, texts)]:
        assert not [word for word in ("$", "my_plugin", "MyPlugin", "TODO") if word in text]


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.1.0", ("0.1", "0.2")), ("0.9.3+checkout", ("0.9", "0.10")), ("2.4.1", ("2.4", "3"))],
)
def test_range_of_versions_ends_before_the_next_that_may_break(
    version: str, expected: tuple[str, str]
) -> None:
    assert version_range(version) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("LossWatch", r"'LossWatch' is no name; .* did you mean 'loss-watch'\?"),
        ("loss_watch", r"did you mean 'loss-watch'\?"),
        ("9", r"'9' is no name; accepted: one like 'loss-watch'$"),
        ("hatbus-lr", r"'hatbus-lr' is a distribution of hatbus"),
        ("hatbus-ema", r"the plugin name 'ema' is reserved for hatbus-model"),
        ("json", r"'json' is a module of Python or installed already; .*'hatbus-json'"),
        ("torch", r"'torch' is a module of Python or installed already"),
        ("hatbus-class", r"of 'hatbus-class' the plugin would be 'class', which is no name in Py"),
        ("hatbus-2fast", r"the plugin would be '2fast', which is no name in Python"),
        ("event-log", r"the class would be 'EventLog', which its files use already"),
    ],
)
def test_name_that_is_taken_or_no_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        names_of(name)


def test_mistakes_on_the_command_line_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme-hat").mkdir()
    (tmp_path / "acme-hat" / "mine.txt").write_text("keep me")
    for words, message in (
        (["acme-hat"], "'acme-hat' is there already"),
        (["a-hat", "--event", "on_stpe_end"], "did you mean 'on_step_end'?"),
        (["a-hat", "--into", "acme-hat/mine.txt/x"], "cannot write 'acme-hat/mine.txt/x': "),
        (["a-hat", "--license", "GPL"], "no text of license 'GPL'; known: 'Apache-2.0'"),
    ):
        assert main(["new-plugin", *words]) == (6 if "--into" in words else 2)
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert [path.name for path in tmp_path.rglob("*")] == ["acme-hat", "mine.txt"]


def test_classes_that_the_templates_import_are_known_to_be_in_use() -> None:
    templates = CHECKOUT / "hatbus" / "authoring" / "templates" / "plugin"
    text = "\n".join((templates / f"{name}.py.txt").read_text() for name in ("module", "test"))
    text += "\n".join("\n".join(words_of(names_of("acme-hat"), e, "MIT").values()) for e in EVENTS)
    imported = re.findall(r"^ *from \S+ import (.+)$", text, re.MULTILINE)
    classes = {name for line in imported for name in re.findall(r"\b[A-Z][a-z]\w+", line)}
    assert classes == _USED


def test_wheel_of_hatbus_holds_the_templates(tmp_path: Path) -> None:
    code = "import sys, hatch_build as b; print(b.build_wheel(sys.argv[1]))"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = zipfile.ZipFile(tmp_path / run.stdout.split()[-1]).namelist()
    templates = [
        p for p in (CHECKOUT / "hatbus" / "authoring" / "templates").rglob("*") if p.is_file()
    ]
    assert len(templates) == 10
    for path in templates:
        assert path.relative_to(CHECKOUT).as_posix() in names


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
