"""``[plugins.NAME] use = "file.py:Class"``: a plugin of one's own in a job, without a package."""

from __future__ import annotations

from pathlib import Path

import pytest
from stranger import hatbus, write_job

from hatbus.bus.blame import source_of
from hatbus.errors import JobError
from hatbus.jobs import jobrun
from hatbus.jobs.jobrun import Prepared, prepare

OWN = """
from hatbus import CallbackMixin


class Counts(CallbackMixin):
    def __init__(self, path: str, times: int = 1):
        self.path, self.times, self.seen = path, times, 0

    def on_step_end(self, **kwargs):
        self.seen += self.times

    def on_loop_end(self, **kwargs):
        with open(self.path, "w") as file:
            file.write(str(self.seen))
"""


def prepared(folder: Path, use: str, more: str = "", plugins: tuple[str, ...] = ()) -> Prepared:
    """A job with a plugin of the file beside it."""
    text = f'[plugins.counts]\nuse = "{use}"\npath = "{folder / "seen.txt"}"\n{more}'
    job = write_job(folder, "" if plugins else text)
    (folder / "counts_steps.py").write_text(OWN)
    return prepare(job, plugins)


def test_a_class_beside_the_job_is_a_plugin_with_options_and_filters(tmp_path: Path) -> None:
    ready = prepared(tmp_path, "counts_steps.py:Counts", 'times = 3\nevery = "2 steps"\n')
    assert ready.found["counts"].source == "counts_steps.py"
    trainer = ready.build()
    trainer.fit(num_steps=4)
    assert (tmp_path / "seen.txt").read_text() == "6"
    impls = trainer.bus.implementations("on_step_end")
    assert "counts_steps.py" in [source_of(i.plugin) for i in impls if i.plugin_name == "counts"]


@pytest.mark.parametrize(
    ("signature", "more", "is_taken"),
    [
        ("tasks", "", True),
        ("tasks=()", 'tasks = ["a"]\n', True),
        ("tasks=()", "", False),
    ],
)
def test_an_option_with_the_name_of_a_key_of_the_bus_is_refused_where_it_is_meant(
    tmp_path: Path, signature: str, more: str, is_taken: bool
) -> None:
    name = signature.partition("=")[0]
    source = OWN.replace("times: int = 1", f"times: int = 1, *, {signature}")
    (tmp_path / "taking.py").write_text(source)
    text = f'[plugins.x]\nuse = "taking.py:Counts"\npath = "p"\n{more}'
    job = write_job(tmp_path, text)
    if not is_taken:
        prepare(job)
        return
    with pytest.raises(JobError, match=rf"its class has an option '{name}', and in a job that key"):
        prepare(job)


def test_the_run_folders_job_finds_the_class_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert jobrun.run(prepared(tmp_path, "counts_steps.py:Counts"), quiet=True) == 0
    (tmp_path / "seen.txt").unlink()
    written = next((tmp_path / "runs").glob("*/2*/job.json"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = hatbus("run", str(written), "--quiet", site=tmp_path / "site", cwd=elsewhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "seen.txt").read_text() == "4"


@pytest.mark.parametrize(
    ("use", "more", "line"),
    [
        ("counts_steps.py:Conts", "", "has no 'Conts'; did you mean 'Counts'?"),
        ("nope.py:Counts", "", "no file 'nope.py' (looked for"),
        ("math:pi", "", "key 'use' is 'math:pi' in job.toml [plugins.counts]: it is no class"),
        ("counts_steps.py:Counts", "tims = 3", "unknown option 'tims' in job.toml [plugins.counts"),
    ],
)
def test_a_class_that_is_not_there_or_has_no_such_option_is_refused_in_one_line(
    tmp_path: Path, use: str, more: str, line: str
) -> None:
    with pytest.raises(JobError) as caught:
        prepared(tmp_path, use, more)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_that_a_table_is_named_after_is_told_to_have_a_name(tmp_path: Path) -> None:
    job = write_job(tmp_path, '[plugins."counts_steps.py:Counts"]\n')
    with pytest.raises(JobError, match=r"write \[plugins.NAME\] and below it use = 'counts_steps"):
        prepare(job)
