"""A stranger's plugin: built, installed, listed, enabled, ordered, disabled, uninstalled."""

from __future__ import annotations

import json
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
from stranger import BUILD

JOB = """
[run]
entry = "train.py:build"
num_steps = 6
[run.args]
steps = 6
[plugins.spike_watch]
decay = 0.5
[plugins.grad_monitor]
log_freq = 1
[plugins.stats_monitor]
[plugins.jsonl_log]
path = "log.jsonl"
"""


WITHOUT_CLIENTS = ("No broken", *(f"hatbus-{n} " for n in ("mlflow", "optuna", "trackio", "wandb")))
"""What ``pip check`` may say: the tests' environment leaves out what only the trackers need."""


@dataclass
class Fresh:
    """A virtual environment that reaches this one's packages, and is its own otherwise."""

    python: Path
    cwd: Path

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs ``python -m`` in the environment."""
        return subprocess.run(
            [self.python, "-m", *words],
            cwd=self.cwd,
            env={"PATH": str(self.python.parent), "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def succeed(self, *words: str | Path) -> str:
        """Runs ``python -m``, which must succeed; gives what it printed."""
        done = self.run(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def order(self, *options: str) -> list[str]:
        """The plugins of the job in the order that ``hatbus explain`` gives."""
        words = [word for option in options for word in ("-o", option)]
        plan = json.loads(self.succeed("hatbus", "explain", "job.toml", "--json", *words))
        entries = [entry for found in plan["events"].values() for entry in found]
        places = {entry["plugin"]: entry["place"] for entry in entries if entry["place"]}
        return sorted(places, key=places.__getitem__)

    def published(self) -> dict[str, list[float]]:
        """Everything that the last run published."""
        values: dict[str, list[float]] = {}
        for line in (self.cwd / "log.jsonl").read_text().splitlines():
            for name, value in json.loads(line).items():
                values.setdefault(name, []).append(value)
        return values


@pytest.fixture
def fresh(tmp_path: Path) -> Fresh:
    """A fresh virtual environment and a folder with a job."""
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True, timeout=100)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    here = "; ".join(f"site.addsitedir({path!r})" for path in site.getsitepackages())
    own.joinpath("zz_the_environment_of_the_tests.pth").write_text(f"import site; {here}\n")
    cwd = tmp_path / "work"
    cwd.mkdir()
    (cwd / "job.toml").write_text(JOB)
    (cwd / "train.py").write_text(BUILD)
    return Fresh(home / "bin" / "python", cwd)


def install(fresh: Fresh, checkout: Path) -> None:
    """Builds the stranger's wheel from a copy of its sources, and installs it with pip."""
    sources = fresh.cwd.parent / "hat-stand"
    shutil.copytree(checkout / "tests" / "thirdparty" / "hat-stand", sources)
    offline = ("--no-index", "--no-build-isolation", "--disable-pip-version-check")
    fresh.succeed("pip", "wheel", "-q", "--no-deps", *offline, "-w", "wheels", sources)
    (wheel,) = (fresh.cwd / "wheels").iterdir()
    assert wheel.name == "hat_stand-2.1-py3-none-any.whl"
    fresh.succeed("pip", "install", "-q", *offline[:1], *offline[2:], wheel)
    broken = fresh.run("pip", "check").stdout.splitlines()
    assert [line for line in broken if not line.startswith(WITHOUT_CLIENTS)] == []


@pytest.mark.timeout(300)
def test_a_strangers_package_lives_its_whole_life_in_a_fresh_environment(
    fresh: Fresh, checkout: Path
) -> None:
    before = fresh.succeed("hatbus", "plugins")
    assert "spike_watch" not in before
    install(fresh, checkout)

    # listed, shown, checked
    lines = fresh.succeed("hatbus", "plugins").splitlines()
    (line,) = set(lines) - set(before.splitlines())
    assert line.split()[:3] == ["spike_watch", "hat-stand", "2.1"]
    assert line.endswith("Ends a run whose loss leaps to many times its running average.")
    shown = fresh.succeed("hatbus", "plugins", "show", "spike_watch")
    for words in ("stage: monitor", "after: grad_monitor", "  factor: float = 5.0"):
        assert words in shown
    assert "events: optimizer_step, on_step_end, on_loop_end" in shown
    checked = fresh.succeed("hatbus", "plugins", "check", "hat-stand")
    assert checked == "hat-stand: ok\nspike_watch: ok\nhatbus leaps: ok\n"

    # enabled by the job: its hooks, its wrapper and its options are at work
    out = fresh.succeed("hatbus", "run", "job.toml")
    assert "watch/loss" in out
    published = fresh.published()
    assert len(published["watch/loss"]) == 6
    assert published["watch/loss"] == sorted(published["watch/loss"], reverse=True)
    assert published["watch/update_seconds"][-1] > 0
    job = json.loads(next((fresh.cwd / "runs" / "work").glob("2*/job.json")).read_text())
    assert job["hatbus"]["distributions"]["spike_watch"] == "hat-stand 2.1"

    # disabled by the command line, and enabled by it
    assert "watch/loss" not in fresh.succeed("hatbus", "run", "job.toml", "-p", "no:spike_watch")
    bare = JOB.replace("[plugins.spike_watch]\ndecay = 0.5\n", "")
    (fresh.cwd / "bare.toml").write_text(bare)
    added = ("-p", "spike_watch", "-o", "spike_watch.log_freq=4")
    fresh.succeed("hatbus", "run", "bare.toml", *added)
    assert len(fresh.published()["watch/loss"]) == 2

    # uninstalled: the job that names it says so
    fresh.succeed("pip", "uninstall", "-q", "-y", "hat-stand")
    assert fresh.succeed("hatbus", "plugins") == before
    gone = fresh.run("hatbus", "run", "job.toml")
    assert gone.returncode == 2
    (line,) = gone.stderr.splitlines()
    assert line.startswith("hatbus: error: unknown plugin 'spike_watch' in job.toml [plugins.")


@pytest.mark.timeout(300)
def test_a_strangers_command_runs_is_listed_and_harms_nobody_when_it_is_broken(
    fresh: Fresh, checkout: Path
) -> None:
    install(fresh, checkout)
    listed = fresh.succeed("hatbus", "--help")
    line = "Tells at which steps of a run's log the loss rose (hat-stand)"
    assert f"    leaps        {line}\n" in listed
    assert "usage: hatbus leaps [-h] log" in fresh.succeed("hatbus", "leaps", "--help")
    fresh.succeed("hatbus", "run", "job.toml")
    assert fresh.succeed("hatbus", "leaps", "log.jsonl") == "6 losses, risen at: none\n"
    (fresh.cwd / "up.jsonl").write_text('{"watch/loss": 1.0}\n{"watch/loss": 2.0}\n')
    risen = fresh.run("hatbus", "leaps", "up.jsonl")
    assert (risen.returncode, risen.stdout) == (1, "2 losses, risen at: 1\n")

    (module,) = fresh.python.parent.parent.glob("lib/*/site-packages/hat_stand/leaps.py")
    module.write_text(f"{module.read_text()}import no_such_module\n")
    assert fresh.succeed("hatbus", "--help") == listed
    fresh.succeed("hatbus", "run", "job.toml")
    broken = fresh.run("hatbus", "leaps", "log.jsonl")
    assert broken.returncode == 2
    assert broken.stderr == (
        "hatbus: error: command 'leaps' of hat-stand 2.1 cannot be loaded from "
        "'hat_stand.leaps:leaps': ModuleNotFoundError: No module named 'no_such_module'; "
        "repair or uninstall hat-stand\n"
    )


@pytest.mark.timeout(300)
def test_a_strangers_plugin_is_ordered_by_its_class_and_then_by_the_job(
    fresh: Fresh, checkout: Path
) -> None:
    install(fresh, checkout)
    assert fresh.order()[:2] == ["grad_monitor", "spike_watch"]
    earlier = fresh.order("spike_watch.after=[]", "spike_watch.before=grad_monitor")
    assert earlier[:2] == ["spike_watch", "grad_monitor"]
    last = fresh.order("spike_watch.stage=report", "spike_watch.after=['jsonl_log']")
    assert last == ["grad_monitor", "stats_monitor", "jsonl_log", "spike_watch"]


@pytest.mark.timeout(300)
def test_a_strangers_state_is_saved_and_restored(fresh: Fresh, checkout: Path) -> None:
    install(fresh, checkout)
    fresh.succeed("hatbus", "run", "job.toml")
    expected = fresh.published()["watch/loss"]
    saving = ("-p", "checkpoint", "-o", "checkpoint.save_dir=saved")
    fresh.succeed("hatbus", "run", "job.toml", *saving, "-o", "run.num_steps=3")
    assert fresh.published()["watch/loss"] == expected[:3]
    fresh.succeed("hatbus", "run", "job.toml", *saving, "-o", "checkpoint.resume=auto")
    assert fresh.published()["watch/loss"] == expected
