"""Job files: what is read, what is overridden, and every problem at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatbus.errors import JobError
from hatbus.jobs.job import parse_job, read_job
from hatbus.jobs.overrides import parse_value

GOOD = """
[run]
entry = "train.py:build"
num_epochs = 5
[run.args]
width = 8
[plugins.cos_lr]
warmup_len = 100
[plugins.det_metrics]
use = "metric_updater"
tasks = ["det"]
every = "10 steps"
step_log_freq = 2
[plugins.ema]
enabled = false
"""


def write(folder: Path, text: str) -> Path:
    """Writes a job file."""
    path = folder / "job.toml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str, *overrides: Any) -> list[str]:
    """The lines that a job file is refused with."""
    with pytest.raises(JobError) as caught:
        read_job(write(folder, text), *overrides)
    return str(caught.value).splitlines()


def test_a_job_is_read_with_defaults_filters_and_options_told_apart(tmp_path: Path) -> None:
    job = read_job(write(tmp_path, GOOD))
    assert (job.run.num_epochs, job.run.seed, job.run.device) == (5, 0, "auto")
    assert job.run.args == {"width": 8}
    assert list(job.plugins) == ["cos_lr", "det_metrics", "ema"]
    assert list(job.enabled) == ["cos_lr", "det_metrics"]
    metrics = job.plugins["det_metrics"]
    assert (metrics.use, metrics.options) == ("metric_updater", {"step_log_freq": 2})
    assert metrics.filters == {"tasks": ["det"], "every": "10 steps"}
    assert job.plugins["cos_lr"].use == "cos_lr"
    assert job.place == Path.cwd() / "runs" / tmp_path.name


def test_p_adds_enables_and_switches_off(tmp_path: Path) -> None:
    job = read_job(write(tmp_path, GOOD), ("tensorboard", "ema", "no:cos_lr"))
    assert list(job.enabled) == ["det_metrics", "ema", "tensorboard"]


def test_o_sets_options_keys_and_nested_tables(tmp_path: Path) -> None:
    words = ("cos_lr.warmup_len=7", "run.num_epochs=2", "run.args.lr=1e-3", "run.run_dir=here/x y")
    job = read_job(write(tmp_path, GOOD), (), (*words, "det_metrics.tasks=['a','b']"))
    assert job.plugins["cos_lr"].options == {"warmup_len": 7}
    assert (job.run.num_epochs, job.run.args) == (2, {"width": 8, "lr": 1e-3})
    assert job.place == Path.cwd() / "here/x y"
    assert job.plugins["det_metrics"].filters["tasks"] == ["a", "b"]


def test_a_length_that_is_overridden_takes_the_place_of_the_jobs_in_the_other_unit(
    tmp_path: Path,
) -> None:
    run = read_job(write(tmp_path, GOOD), (), ("run.num_steps=3",)).run
    assert (run.num_epochs, run.num_steps) == (None, 3)
    steps = write(tmp_path, GOOD.replace("num_epochs", "num_steps"))
    run = read_job(steps, (), ("run.num_epochs=2",)).run
    assert (run.num_epochs, run.num_steps) == (2, None)
    (found,) = problems(tmp_path, GOOD, (), ("run.num_steps=3", "run.num_epochs=2"))
    assert found.startswith("both of num_epochs and num_steps in job.toml [run]")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("3", 3), ("0.5", 0.5), ("true", True), ("[1, 2]", [1, 2]), ("{ a = 1 }", {"a": 1})],
        *[("'a'", "a"), ("a/b c", "a/b c"), ("", ""), ("True", "True"), ("1\nb = 2", "1\nb = 2")],
    ],
)
def test_an_override_is_read_as_toml_else_as_a_plain_string(text: str, value: Any) -> None:
    assert parse_value(text) == value


def test_every_problem_of_a_job_is_reported_at_once(tmp_path: Path) -> None:
    text = """
    [runs]
    [run]
    entry = 3
    num_epochs = 0
    num_steps = 5
    presicion = "bf16"
    accumulate = "two"
    nan = "skip"
    [plugins.a]
    enabled = "no"
    stage = "reporting"
    [plugins.b]
    every = "10 lightyears"
    [plugins]
    c = 1
    """
    text = "\n".join(line.strip() for line in text.splitlines()).replace("[plugins]\nc = 1", "")
    found = problems(tmp_path, text, ("no:nope", "d"), ("e.x=1", "run", "cos=1"))
    expected = [
        "unknown table 'runs' in job.toml; did you mean 'run'?",
        "-p no:nope: no plugin 'nope' in the job; known: 'a', 'b'",
        "-o e.x=1: no plugin 'e' in the job; known: 'a', 'b', 'd', 'run'",
        "-o run: accepted: instance.option=value, run.key=value",
        "-o cos=1: accepted: instance.option=value, run.key=value",
        "key 'entry' is 3 in job.toml [run]; accepted: a string",
        "unknown key 'presicion' in job.toml [run]; did you mean 'precision'?",
        "key 'accumulate' is 'two' in job.toml [run]; accepted: a whole number",
        "key 'nan' is 'skip' in job.toml [run]; accepted: 'raise', 'skip_step', 'ignore'",
        "both of num_epochs and num_steps in job.toml [run]; give exactly one of the two",
        "key 'num_epochs' is 0 in job.toml [run]; accepted: 1 or more",
        "key 'enabled' is 'no' in job.toml [plugins.a]; accepted: true or false",
    ]
    for line in expected:
        assert line in found
    stage, every = (f"plugin {name!r} in job.toml [plugins.{name}]: " for name in "ab")
    assert any(line.startswith(f"{stage}unknown stage 'reporting'") for line in found)
    assert any(line.startswith(f"{every}every='10 lightyears' is no interval") for line in found)
    assert len(found) == len(expected) + 2


def test_a_plugin_or_table_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, "run = 1\n[plugins]\nema = true\n")
    assert "'run' is 1 in job.toml; accepted: a table [run]" in found
    assert any(line.startswith("plugin 'ema' is True in job.toml [plugins.ema]") for line in found)
    assert any(line.startswith("missing key 'entry' in job.toml [run]") for line in found)


def test_a_job_without_run_is_told_to_put_its_keys_below_it(tmp_path: Path) -> None:
    assert problems(tmp_path, 'entry = "train.py:build"\nnum_epochs = 0\n') == [
        "key 'entry' in job.toml stands in no table; put it below [run]",
        "key 'num_epochs' in job.toml stands in no table; put it below [run]",
        "key 'num_epochs' is 0 in job.toml [run]; accepted: 1 or more",
    ]


def test_a_file_that_is_missing_a_folder_or_no_toml_is_said_so(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(JobError, match=r"no job file .*jobb\.toml.*did you mean 'job.toml'"):
        read_job(tmp_path / "jobb.toml")
    with pytest.raises(JobError, match="is a folder; give its job file"):
        read_job(tmp_path)
    assert "line 2, column 8" in problems(tmp_path, "[run]\nentry= =")[0]
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobError, match="cannot be read"):
        read_job(tmp_path / "bytes.toml")


def test_a_job_written_to_json_is_read_back_the_same(tmp_path: Path) -> None:
    job = read_job(write(tmp_path, GOOD), ("progress",), ("cos_lr.warmup_len=3",))
    (tmp_path / "run").mkdir()
    copy = tmp_path / "run" / "job.json"
    copy.write_text(job.to_json(version="0.1.0"))
    again = read_job(copy)
    assert again.to_tables() == job.to_tables()
    assert again.folder == tmp_path.resolve()
    assert json.loads(copy.read_text())["hatbus"]["version"] == "0.1.0"


@given(st.text(max_size=40), st.lists(st.text(max_size=12), max_size=3))
def test_no_text_makes_reading_a_job_end_in_anything_but_a_job_error(
    text: str, words: list[str]
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.toml"
        path.write_text(text, "utf-8", errors="replace")
        with pytest.raises(JobError):
            read_job(path, tuple(words), tuple(words))


@given(st.dictionaries(st.text(), st.integers() | st.booleans() | st.lists(st.integers())))
def test_any_table_as_run_is_refused_in_words(table: dict[str, Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps({"run": table}))
        with pytest.raises(JobError, match=r"(missing key|key) 'entry'"):
            read_job(path)


def test_the_examples_in_the_documentation_are_accepted(checkout: Path, tmp_path: Path) -> None:
    text = (checkout / "docs" / "jobs.md").read_text()
    examples = [part.partition("```")[0] for part in text.split("```toml\n")[1:]]
    assert examples
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.toml"
        path.write_text(example)
        assert read_job(path).plugins


def test_a_save_dir_that_is_needed_but_not_given_is_in_the_runs_folder(tmp_path: Path) -> None:
    from hatbus.jobs.jobrun import with_place

    class Needs:
        def __init__(self, save_dir: str, every: int = 1) -> None: ...

    class Defaults:
        def __init__(self, save_dir: str = "here") -> None: ...

    given = {"every": 2}
    assert with_place("tb", Needs, given, tmp_path) == {
        "every": 2,
        "save_dir": str(tmp_path / "tb"),
    }
    assert with_place("tb", Needs, {"save_dir": "x"}, tmp_path) == {"save_dir": "x"}
    assert with_place("tb", Defaults, {}, tmp_path) == {}


def test_a_job_with_problems_in_its_run_table_is_handed_on_for_its_plugins_to_be_checked(
    tmp_path: Path,
) -> None:
    job, found = parse_job(write(tmp_path, '[run]\nentry = "t.py:b"\nsed = 1\n[plugins.ema]\n'))
    assert job is not None
    assert list(job.enabled) == ["ema"]
    assert len(found) == 2
    assert parse_job(write(tmp_path, "[run]\nnum_epochs = 1\n"))[0] is None


@pytest.mark.parametrize("name", ["job.toml", "job.json"])
def test_a_mark_at_the_beginning_of_a_job_file_is_passed_over(tmp_path: Path, name: str) -> None:
    text = write(tmp_path, '[run]\nentry = "t.py:b"\nnum_epochs = 1\n').read_text()
    if name.endswith("json"):
        text = read_job(tmp_path / "job.toml").to_json()
    (tmp_path / name).write_text(text, "utf-8-sig")
    assert read_job(tmp_path / name).run.entry == "t.py:b"


def test_a_job_file_in_another_encoding_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("[run]", "utf-16")
    with pytest.raises(JobError, match=r"job.toml' cannot be read: .*; save it as UTF-8"):
        read_job(tmp_path / "job.toml")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("max_epochs", "did you mean 'num_epochs'?"),
        ("criterion", "the entry function returns it as 'loss'"),
        ("callbacks", "add [plugins.NAME] for each"),
        ("val_loader", "add [plugins.validation]"),
        ("strategy", "start the processes with torchrun"),
        ("sead", "did you mean 'seed'?"),
    ],
)
def test_a_key_of_another_trainers_is_told_what_it_means_here(
    tmp_path: Path, key: str, hint: str
) -> None:
    text = f'[run]\nentry = "t.py:b"\nnum_epochs = 1\n{key} = "x"\n'
    assert problems(tmp_path, text) == [f"unknown key {key!r} in job.toml [run]; {hint}"]


def test_none_is_a_word_in_a_job_and_on_the_command_line(tmp_path: Path) -> None:
    run = '[run]\nentry = "t.py:b"\nnum_epochs = 1\nresume = "auto"\n'
    text = f'{run}[plugins.ema]\nevery = "1 epoch"\n'
    write(tmp_path, text)
    words = ("run.resume=@none", "ema.every=@none", "run.num_epochs=@none", "run.num_steps=4")
    job = read_job(tmp_path / "job.toml", options=words)
    assert (job.run.resume, job.run.num_epochs, job.run.num_steps) == (None, None, 4)
    assert job.plugins["ema"].filters == {}
    (tmp_path / "job.json").write_text(job.to_json())
    assert read_job(tmp_path / "job.json").run.resume is None
