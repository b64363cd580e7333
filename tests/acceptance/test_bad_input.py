"""What a user can get wrong, through the real command: one line that helps, never a traceback."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest
from stranger import install, write_job

MORE = """
import time
import torch
from train import build as good


class Buggy(torch.nn.Linear):
    def forward(self, inputs, task=None):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(inputs) if self.calls < 3 else {}["a key"]


class Endless:
    def __iter__(self):
        while True:
            time.sleep(0.01)
            yield torch.ones(2, 3), torch.zeros(2, 1)


class Empty:
    def __iter__(self):
        return iter(())


class Fails:
    def __iter__(self):
        yield torch.ones(2, 3), torch.zeros(2, 1)
        raise OSError("disk on fire")


def build(what: str = ""):
    made = good(steps=6)
    model = made["model"]
    if what == "empty":
        made["data"] = Empty()
    elif what == "empty task":
        made["data"] = {"det": made["data"], "seg": []}
    elif what == "tasks":
        made["data"] = {"det": made["data"], "seg": made["data"]}
    elif what == "no pair":
        made["data"] = [torch.ones(2, 3)]
    elif what == "failing":
        made["data"] = Fails()
    elif what == "endless":
        made["data"] = Endless()
    elif what == "float loss":
        made["loss"] = lambda outs, target: 0.5
    elif what == "long loss":
        made["loss"] = lambda outs, target: (outs - target).flatten()
    elif what == "not a number":
        made["loss"] = lambda outs, target: (outs - target).sum() * float("nan")
    elif what == "buggy":
        made["model"] = Buggy(3, 1)
        made["optimizer"] = torch.optim.SGD(made["model"].parameters(), lr=0.1)
    return made
"""
PLUGINS = """
    from pathlib import Path
    from hatbus import hookimpl, plugin

    class Nothing:
        def helps(self): ...

    class Unmarked:
        def on_step_end(self): ...

    @plugin(writes="optimizer.lr")
    class Rates:
        @hookimpl
        def on_step_end(self): ...

    class Replaces:
        @hookimpl
        def backward(self): ...

    class Bug:
        @hookimpl(wrapper=True)
        def optimizer_step(self):
            result = yield
            raise RuntimeError("a bug")

    class Tells:
        '''Says that the third step began.'''
        @hookimpl
        def on_step_end(self, global_step_id):
            if global_step_id == 3:
                Path("running").touch()
"""
ENTRY_POINTS = {
    "nothing": "acme:Nothing",
    "unmarked": "acme:Unmarked",
    "rates": "acme:Rates",
    "replaces": "acme:Replaces",
    "bug": "acme:Bug",
    "tells": "acme:Tells",
    "needs_more": "acme_more:Needs",
    "leaves": "acme_leaves:Leaves",
}


@pytest.fixture
def job(outside) -> Path:
    """A job whose entry function makes every mistake on demand."""
    modules = {
        "acme.py": PLUGINS,
        "acme_more.py": "import a_package_that_is_not_there\n",
        "acme_leaves.py": "import sys\nsys.exit('a plugin must not end the process')\n",
    }
    install(outside.site, "acme", ENTRY_POINTS, modules)
    found = write_job(outside.cwd, run='num_steps = 6\nrun_dir = "run"')
    (outside.cwd / "more.py").write_text(MORE)
    return found


def failing(outside, job: Path, *options: str) -> tuple[int, str]:
    """Exit code and the one line of a run that must fail."""
    done = outside.hatbus("run", job, "-o", "run.entry=more.py:build", "--quiet", *options)
    assert "Traceback" not in done.err, done.err
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("hatbus: error: ")
    return done.code, lines[0].removeprefix("hatbus: error: ")


def test_every_problem_of_a_job_is_told_at_once_also_those_of_its_run_table(outside, job) -> None:
    job.write_text(
        dedent("""
        [run]
        entry = "more.py:build"
        num_epoch = 3
        num_steps = "four"
        accumulate = true
        seed = 1.5
        precision = "fp8"
        nan = "rise"
        [run.args]
        wat = "empty"
        [runs]
        [plugins.progres]
        [plugins.metrics]
        use = "metric_updatr"
        [plugins.needs_more]
        [plugins.leaves]
        [plugins.tells]
        rank = "zero"
        evry = "3 steps"
        """)
    )
    done = outside.hatbus("run", job)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    for words in (
        "unknown table 'runs' in job.toml; did you mean 'run'?",
        "unknown key 'num_epoch' in job.toml [run]; did you mean 'num_epochs'?",
        "key 'num_steps' is 'four' in job.toml [run]; accepted: ",
        "key 'accumulate' is True in job.toml [run]; accepted: ",
        "key 'seed' is 1.5 in job.toml [run]; accepted: ",
        "key 'precision' is 'fp8' in job.toml [run]; accepted: 'fp32', 'bf16'",
        "key 'nan' is 'rise' in job.toml [run]; accepted: 'raise', 'skip_step'",
        "unknown argument 'wat' in job.toml [run.args]; did you mean 'what'?",
        "unknown plugin 'progres' in job.toml [plugins.progres]; did you mean 'progress'?",
        "unknown plugin 'metric_updatr' in job.toml [plugins.metrics]; did you mean",
        "plugin 'needs_more' of acme 1.0 cannot be loaded from 'acme_more:Needs': Module",
        "plugin 'leaves' of acme 1.0 cannot be loaded from 'acme_leaves:Leaves': SystemExit: ",
        "unknown option 'rank' in job.toml [plugins.tells]; did you mean 'ranks'?",
        "unknown option 'evry' in job.toml [plugins.tells]; did you mean 'every'?",
    ):
        assert done.err.count(f"hatbus: error: {words}") == 1, words + "\n" + done.err
    assert len(done.err.splitlines()) == 14, done.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (
            ["-p", "rates", "-p", "step_decay_lr", "-o", "step_decay_lr.lr_decay_id=[1]"],
            2,
            "optimizer.lr",
        ),
        (["-o", "tells.tasks=['dett']", "-p", "tells", "-o", "run.args.what=tasks"], 2, "'det'"),
        (["-o", "run.device=cupu"], 2, "unknown device 'cupu'; accepted: 'auto', 'cpu'"),
        (["-o", "run.args.what=empty"], 5, "the loader gave no batch"),
        (["-o", "run.args.what=empty task"], 5, "the loader of task 'seg' has length 0"),
        (["-o", "run.args.what=no pair"], 2, "a batch is a Tensor, not a pair (inputs, target)"),
        (["-o", "run.args.what=float loss"], 2, "loss 'loss' is a float; accepted: a 0-d tensor"),
        (["-o", "run.args.what=long loss"], 2, "loss 'loss' is a tensor of shape (2,); accepted"),
        (["-o", "run.args.what=not a number"], 7, "loss 'loss' is nan in step 0"),
        (["-p", "replaces"], 3, "None"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_with_its_exit_code(outside, job, options, code, words) -> None:
    found, line = failing(outside, job, *options)
    assert (found, words in line) == (code, True), line


def test_every_plugin_that_is_refused_is_told_once(outside, job) -> None:
    refused = ("-p", "nothing", "-p", "unmarked", "-p", "rates", "-p", "bug")
    done = outside.hatbus("run", job, *refused, "-o", "rates.stage=setup", "-o", "rates.after=bug")
    assert done.code == 2
    first, second, third = done.err.splitlines()
    assert "'nothing' (acme.Nothing) implements no event; mark its methods with" in first
    assert "'unmarked' (acme.Unmarked): on_step_end is named like an event but not mark" in second
    assert "has a cycle: bug -> rates -> bug" in third


def test_two_distributions_of_one_name_are_both_named_where_the_name_is_used(outside, job) -> None:
    install(outside.site, "zeta-hats", {"tells": "zeta:Tells", "unused": "zeta:T"}, {"zeta.py": ""})
    code, line = failing(outside, job, "-p", "tells")
    assert code == 2
    assert "'tells' is offered by acme 1.0 (acme:Tells) and zeta-hats 1.0 (zeta:Tells)" in line
    assert "uninstall one of them" in line
    assert outside.hatbus("run", job).code == 0


def test_a_bug_in_a_plugins_wrapper_has_a_traceback_and_names_it(outside, job) -> None:
    done = outside.hatbus("run", job, "-p", "bug")
    assert done.code == 3
    assert "Traceback" in done.err
    assert "acme.py" in done.err
    assert done.last == (
        "hatbus: error: plugin 'bug' (acme 1.0), optimizer_step, step 0 "
        "failed with RuntimeError: a bug"
    )


@pytest.mark.parametrize(
    ("what", "step", "line"), [("buggy", 2, "KeyError: 'a key'"), ("failing", 0, "disk on fire")]
)
def test_a_bug_in_the_users_code_has_a_traceback_and_its_step(
    outside, job, what: str, step: int, line: str
) -> None:
    options = ("-o", "run.entry=more.py:build", "-o", f"run.args.what={what}")
    done = outside.hatbus("run", job, *options)
    assert done.code == 1
    assert "Traceback" in done.err
    assert "more.py" in done.err
    assert f"step {step}" in done.err
    assert line in done.last


@pytest.mark.parametrize(
    ("number", "saves", "code"),
    [(signal.SIGINT, False, 130), (signal.SIGTERM, False, 143), (signal.SIGTERM, True, 75)],
)
def test_a_signal_ends_a_run_after_its_step_without_a_traceback(
    outside, job, number: int, saves: bool, code: int
) -> None:
    options = ["-o", "run.entry=more.py:build", "-o", "run.args.what=endless", "-p", "tells"]
    if saves:
        options += ["-p", "checkpoint", "-o", "checkpoint.save_dir=saved"]
    words = ["-m", "hatbus", "run", job, "-o", "run.num_steps=100000", *options]
    process = outside.start([sys.executable, *words])
    deadline = time.monotonic() + 90
    while not (outside.cwd / "running").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    done = outside.finish(process, 30)
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert signal.Signals(number).name in done.err
    assert saves == any((outside.cwd / "saved").glob("checkpoint-*"))


LATE = """
import atexit, os, signal
from train import build as built

def build(**arguments):
    atexit.register(os.kill, os.getpid(), signal.SIGTERM)
    return built(**arguments)
"""


def test_a_run_that_is_over_succeeded_whatever_signal_comes_after_it(outside, job) -> None:
    (outside.cwd / "late.py").write_text(LATE)
    done = outside.hatbus("run", job, "-o", "run.entry=late.py:build")
    assert done.code == 0, done.err
