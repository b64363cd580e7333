"""The command line, driven from outside."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stranger import hatbus, install, install_recorder, write_job

from hatbus.cli import COMMANDS, main
from hatbus.errors import JobError
from hatbus.jobs.jobrun import prepare
from hatbus.runs import run_folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with an installed stranger's plugin."""
    folder = tmp_path / "site"
    install_recorder(folder)
    return folder


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line on stderr."""
    return done.stderr.rstrip().rpartition("\n")[2]


def test_a_job_with_a_strangers_plugin_trains_and_shows_metrics_and_files(
    tmp_path: Path, site: Path
) -> None:
    job = write_job(tmp_path / "job", '[plugins.recorder]\npath = "losses.txt"\n')
    done = hatbus("run", str(job), "-o", "recorder.digits=5", site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "losses.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3"]
    assert "train/loss" in done.stdout
    assert "after 4 steps" in done.stdout
    assert re.search(r"files: runs/job/\d{4}-\d\d-\d\d_", done.stdout)
    written = json.loads((run_folder(tmp_path / "runs" / "job") / "job.json").read_text())
    assert written["plugins"]["recorder"]["digits"] == 5
    assert written["hatbus"]["distributions"] == {"recorder": "acme-hats 1.0"}


def test_a_run_folders_job_runs_again_as_it_ran(tmp_path: Path, site: Path) -> None:
    job = write_job(tmp_path / "job", '[plugins.recorder]\npath = "losses.txt"\n')
    assert hatbus("run", str(job), site=site, cwd=tmp_path).returncode == 0
    first = (tmp_path / "losses.txt").read_text()
    again = hatbus(
        "run",
        str(run_folder(tmp_path / "runs/job") / "job.json"),
        "--quiet",
        site=site,
        cwd=tmp_path,
    )
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert (tmp_path / "losses.txt").read_text() == first * 2


def test_a_plugin_that_is_off_or_broken_and_unused_changes_no_bit(
    tmp_path: Path, site: Path
) -> None:
    install(site, "broken", {"broken": "broken:Broken"}, {"broken.py": "1 / 0"})
    install(site, "evil", {"ema": "evil:Ema", "recorder2": "evil:R"})
    job = write_job(
        tmp_path / "job",
        """
        [plugins.recorder]
        path = "with.txt"
        digits = 17
        [plugins.other]
        use = "recorder"
        path = "other.txt"
        """,
    )
    assert hatbus("run", str(job), site=site, cwd=tmp_path).returncode == 0
    without = ("-p", "no:other", "-o", "recorder.path=without.txt")
    assert hatbus("run", str(job), *without, site=site, cwd=tmp_path).returncode == 0
    assert (tmp_path / "with.txt").read_text() == (tmp_path / "without.txt").read_text()
    assert (tmp_path / "other.txt").exists()


def test_options_reach_what_the_entry_function_returned_and_functions_of_files(
    tmp_path: Path, site: Path
) -> None:
    job = write_job(
        tmp_path / "job",
        """
        [plugins.recorder]
        path = "@extra"
        digits = { call = "numbers_of_mine.py:twice", value = 2 }
        """,
    )
    (tmp_path / "job" / "numbers_of_mine.py").write_text("def twice(value): return value * 2\n")
    done = hatbus("run", str(job), site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "extra.txt").read_text().split()[1].partition(".")[2]) == 4


def test_all_mistakes_of_a_job_are_told_at_once_without_a_traceback(
    tmp_path: Path, site: Path
) -> None:
    install(site, "broken", {"broken": "broken:Broken"}, {"broken.py": "1 / 0"})
    job = write_job(
        tmp_path / "job",
        """
        presicion = "bf16"
        [run.args]
        stepz = 3
        [plugins.recorder]
        digit = 3
        scale = "big"
        [plugins.recordr]
        [plugins.broken]
        """,
    )
    job.write_text(job.read_text().replace('presicion = "bf16"', "accumulate = 2"))
    done = hatbus("run", str(job), "-p", "cosin_lr", site=site, cwd=tmp_path)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    where = "in job.toml [plugins.recorder]"
    unknown, then = "unknown plugin 'recordr'", "repair or uninstall broken"
    broken = "plugin 'broken' of broken 1.0 cannot be loaded from 'broken:Broken'"
    assert lines == [
        "hatbus: error: unknown argument 'stepz' in job.toml [run.args]; did you mean 'steps'?",
        f"hatbus: error: unknown option 'digit' {where}; did you mean 'digits'?",
        f"hatbus: error: option 'scale' is 'big' {where}; accepted: a number",
        f"hatbus: error: missing option 'path' {where}; accepted: a string",
        f"hatbus: error: {unknown} in job.toml [plugins.recordr]; did you mean 'recorder'?",
        f"hatbus: error: {broken}: ZeroDivisionError: division by zero; {then}",
        "hatbus: error: unknown plugin 'cosin_lr' in -p cosin_lr; did you mean 'cos_lr'?",
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nope.py:build", "no file 'nope.py' (looked for"),
        ("train.py:biuld", "train.py has no 'biuld'; did you mean 'build'?"),
        ("no_such_module:build", "no module 'no_such_module'"),
        ("train", "'train' names no object; accepted: 'file.py:name', 'module:name'"),
        ("math:pi", "it is no function"),
        ("builtins:dict", "entry 'builtins:dict' returned no 'model'; accepted: a dict with"),
        ("builtins:print", "entry 'builtins:print' returned None; accepted: a dict"),
        ("bad.py:tuple_of_two", "returned a tuple of 2; accepted: a dict"),
        (
            "bad.py:typo",
            "'optimiser', which the trainer does not know; did you mean 'optimizer'?",
        ),
        ("bad.py:strings", "returned a str as 'model'; accepted: a torch.nn.Module"),
    ],
)
def test_an_entry_that_is_wrong_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, message: str
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "train", raising=False)  # another test's
    monkeypatch.chdir(tmp_path)
    job = write_job(tmp_path)
    (tmp_path / "bad.py").write_text(
        "from train import build\n"
        "def tuple_of_two(): return 1, 2\n"
        "def typo(): b = build(); b['optimiser'] = b.pop('optimizer'); return b\n"
        "def strings(): return 'a', 'b', 'c'\n"
    )
    with pytest.raises(JobError) as caught:
        prepare(job, (), (f"run.entry={entry}",)).build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_loader_is_one_line_with_the_exit_code_of_data(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    done = hatbus("run", str(job), "-o", "run.args.steps=0", site=tmp_path, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (5, 1), done.stderr


def test_an_exception_in_the_users_code_has_a_traceback_and_exit_code_1(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    (tmp_path / "job" / "bug.py").write_text("def build(): return {}['a key']\n")
    done = hatbus("run", str(job), "-o", "run.entry=bug.py:build", site=tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "bug.py" in done.stderr
    assert last_line(done) == "hatbus: error: KeyError: 'a key'"


def test_a_plugin_that_raises_is_named_with_its_event_and_step(tmp_path: Path) -> None:
    source = """
        from hatbus import hookimpl
        class Boom:
            def __init__(self, at: int = 2, when: str = "step"):
                if at < 0:
                    raise ValueError(f"at is {at}; accepted: 0 or more")
                self.at = at
                1 / at
            @hookimpl
            def on_step_end(self, global_step_id):
                if global_step_id == self.at:
                    raise RuntimeError("boom")
    """
    install(tmp_path, "acme-boom", {"boom": "acme_boom:Boom"}, {"acme_boom.py": source})
    job = write_job(tmp_path / "job", "[plugins.boom]\n")
    done = hatbus("run", str(job), site=tmp_path, cwd=tmp_path)
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert "acme_boom.py" in done.stderr
    assert last_line(done) == (
        "hatbus: error: plugin 'boom' (acme-boom 1.0), on_step_end, step 2 "
        "failed with RuntimeError: boom"
    )
    wrong = hatbus("run", str(job), "-o", "boom.at=-1", site=tmp_path, cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "hatbus: error: plugin 'boom' in job.toml [plugins.boom]: at is -1; accepted: 0 or more\n",
    )
    bug = hatbus("run", str(job), "-o", "boom.at=0", site=tmp_path, cwd=tmp_path)
    assert bug.returncode == 2
    assert "plugin 'boom' (acme-boom 1.0) failed while it was built" in bug.stderr
    assert "Traceback" not in bug.stderr
    shown = hatbus("run", str(job), "-o", "boom.at=0", "--traceback", site=tmp_path, cwd=tmp_path)
    assert "ZeroDivisionError" in shown.stderr
    assert "Traceback" in shown.stderr


def test_a_missing_job_file_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = hatbus("run", "jb.toml", site=tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "hatbus: error: no job file 'jb.toml'\n")


def test_a_job_that_is_no_toml_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text("[run]\nentry = train.py\n")
    done = hatbus("run", "job.toml", site=tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert "line 2" in done.stderr


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    (tmp_path / "file").write_text("")
    done = hatbus("run", str(job), "-o", "run.run_dir=file/run", site=tmp_path, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (6, 1), done.stderr


def test_ctrl_c_ends_with_130_and_no_traceback(tmp_path: Path) -> None:
    job = write_job(tmp_path / "job")
    (tmp_path / "job" / "stop.py").write_text("def build(): raise KeyboardInterrupt\n")
    done = hatbus("run", str(job), "-o", "run.entry=stop.py:build", site=tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "hatbus: interrupted\n")


def test_plugins_lists_every_plugin_and_what_is_wrong_with_it(tmp_path: Path, site: Path) -> None:
    install(site, "evil", {"recorder": "evil:Recorder", "ema": "evil:Ema", "gone": "evil:Gone"})
    done = hatbus("plugins", site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "acme-hats 1.0" in line or "evil" in line]
    assert len([r for r in rows if r.startswith("recorder") and "conflict: " in r]) == 2
    assert any("reserved for hatbus-model" in row for row in rows)
    assert any("no source for evil:Gone" in row for row in rows)


def test_plugins_as_json_holds_all_that_is_known(tmp_path: Path, site: Path) -> None:
    done = hatbus("plugins", "show", "recorder", "--json", site=site, cwd=tmp_path)
    (plugin,) = json.loads(done.stdout)
    assert plugin["distribution"] == "acme-hats"
    assert plugin["events"] == ["on_step_end"]
    assert plugin["parameters"][1] == {"name": "digits", "annotation": "int", "default": "3"}
    listed = json.loads(hatbus("plugins", "--json", site=site, cwd=tmp_path).stdout)
    assert plugin in listed
    refused = hatbus("plugins", site=site, cwd=tmp_path, HATBUS_ALLOW="other")
    assert "refused by HATBUS_ALLOW" in refused.stdout


def test_plugins_show_prints_documentation_events_and_options(tmp_path: Path, site: Path) -> None:
    done = hatbus("plugins", "show", "recorder", site=site, cwd=tmp_path)
    for words in ("Writes down the loss", "stage: report", "events: on_step_end"):
        assert words in done.stdout
    assert "  path: str (required)\n  digits: int = 3\n" in done.stdout
    missing = hatbus("plugins", "show", "recordr", site=site, cwd=tmp_path)
    assert (missing.returncode, missing.stderr) == (
        2,
        "hatbus: error: unknown plugin 'recordr'; did you mean 'recorder'?\n",
    )


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", ["plugins", "events"])
def test_lists_stay_inside_a_terminal_and_say_the_same_there(
    command: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command]) == 0
    piped = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main([command]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= columns
    assert shown.split() == piped.split()
    starts = [line.split()[0] for line in shown.splitlines() if not line.startswith(" ")]
    assert starts == [line.split()[0] for line in piped.splitlines()]


def test_events_lists_all_and_shows_one(tmp_path: Path) -> None:
    listed = hatbus("events", site=tmp_path, cwd=tmp_path)
    assert listed.stdout.startswith("run_loop")
    one = hatbus("events", "on_log", site=tmp_path, cwd=tmp_path)
    assert "dict[str, Any]: name to published value" in one.stdout
    plain = json.loads(hatbus("events", "--json", site=tmp_path, cwd=tmp_path).stdout)
    assert {event["name"] for event in plain} >= {"run_step", "skip_batch", "on_exception"}
    wrong = hatbus("events", "on_stp_end", site=tmp_path, cwd=tmp_path)
    assert wrong.stderr == (
        "hatbus: error: unknown event 'on_stp_end'; did you mean 'on_step_end'?\n"
    )


def test_an_unknown_command_gets_the_nearest(tmp_path: Path) -> None:
    done = hatbus("rnu", site=tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "hatbus: error: unknown command 'rnu'; did you mean 'run'?\n",
    )


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["plugins"], ["events"], *([c, "--help"] for c in COMMANDS)],
)
def test_what_lists_or_helps_imports_no_torch(tmp_path: Path, site: Path, words: list[str]) -> None:
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = hatbus(*words, site=tmp_path / "spy", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("words", "bar"), [(["--help"], 0.1), (["plugins"], 0.15)])
def test_what_lists_or_helps_is_quick(
    tmp_path: Path, site: Path, words: list[str], bar: float
) -> None:
    """The bar is for a quiet machine, where Python alone starts in 25 ms; a busy one is scaled."""

    def seconds(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        return time.perf_counter() - start

    hatbus(*words, site=site, cwd=tmp_path)
    pairs = [(seconds("-c", "pass"), seconds("-m", "hatbus", *words)) for _ in range(5)]
    start = statistics.median(first for first, _ in pairs)
    assert statistics.median(second for _, second in pairs) < 3 * bar * max(1, start / 0.025)
