"""Names of instances are checked at the start: files, folders and options are named by them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import hearing, tiny_trainer

from hatbus import Bus, hookimpl
from hatbus.callbacks import Checkpoint
from hatbus.errors import JobError, PluginError
from hatbus.events.instance_names import ACCEPTED
from hatbus.jobs.job import read_job

ODD = ["a.b", "run", ".", "..", "../up", "", "a b", "a/b", "a\\b", "a:b", "x" * 65, "\u65e5" * 25]


class Counts:
    """A plugin with a state."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl
    def on_step_end(self) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_nothing_can_be_named_by_is_refused_with_what_is_accepted(name: str) -> None:
    with pytest.raises(PluginError) as caught:
        Bus({name: Counts()})
    assert ACCEPTED in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in ODD if '"' not in name and "\\" not in name])
def test_a_job_says_so_before_it_writes_anything(tmp_path: Path, name: str) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        f'[run]\nentry = "a.py:f"\nnum_steps = 1\n[plugins."{name}"]\nuse = "checkpoint"\n'
    )
    with pytest.raises(JobError) as caught:
        read_job(job)
    assert "in job.toml [plugins." in str(caught.value)
    assert ACCEPTED in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["job.toml"]


@pytest.mark.parametrize("name", ["a", "A-1_b", "pr\u00fcfung", "x" * 64, "2", "-"])
def test_every_other_name_is_saved_and_resumed(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "checkpoints")
    tiny_trainer({name: Counts(), "checkpoint": Checkpoint(path)}).fit(num_steps=2)
    resumed = Counts()
    tiny_trainer({name: resumed, "checkpoint": Checkpoint(path, resume="auto")}).fit(num_steps=3)
    assert resumed.count == 3


def test_two_names_that_differ_by_case_alone_are_refused() -> None:
    ends = [hearing(["on_step_end"], print) for _ in range(2)]
    with pytest.raises(PluginError, match="'ema' and 'EMA': their names differ by case alone"):
        Bus({"ema": ends[0], "EMA": ends[1]})
