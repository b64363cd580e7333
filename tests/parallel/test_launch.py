"""How processes are started: by torchrun, by srun, by hand."""

from __future__ import annotations

import doctest

import pytest

from hatbus.errors import JobError
from hatbus.parallel import launch

STEP = {
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def joined(**changes: str) -> dict[str, str]:
    environment = {**STEP, **changes}
    launch.join_slurm(environment)
    return environment


def test_the_example_of_first_host_holds() -> None:
    assert doctest.testmod(launch).failed == 0


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("login1", "login1"),
        ("a1,b2", "a1"),
        ("gpu[03-04,07]", "gpu03"),
        ("gpu[1,5-9],cpu2", "gpu1"),
        ("rack[2-4]node[07,11-12]", "rack2node07"),
    ],
)
def test_the_first_host_of_slurms_short_list(hosts: str, first: str) -> None:
    assert launch.first_host(hosts) == first


def test_a_task_of_srun_joins_the_others_of_its_step() -> None:
    found = joined()
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("3", "4", "1")
    assert found["MASTER_ADDR"] == "gpu03"
    ports = {joined(SLURM_PROCID=str(task))["MASTER_PORT"] for task in range(4)}
    assert len(ports) == 1
    assert 1024 < int(ports.pop()) < 65536
    assert joined(SLURM_STEP_ID="1")["MASTER_PORT"] != found["MASTER_PORT"]


def test_tasks_on_one_host_meet_there_whatever_its_name() -> None:
    assert joined(SLURM_STEP_NUM_NODES="1")["MASTER_ADDR"] == "localhost"


@pytest.mark.parametrize("given", [{"RANK": "0", "WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_torchrun_and_steps_of_one_task_stay_as_they_are(given: dict[str, str]) -> None:
    found = joined(**given)
    assert "MASTER_ADDR" not in found
    assert found.get("RANK") == given.get("RANK")


def test_a_batch_script_without_srun_is_refused() -> None:
    batch = {name: value for name, value in STEP.items() if "_STEP_" not in name}
    with pytest.raises(JobError, match=r"SLURM_NTASKS is 8.*not started by srun.*write `srun"):
        launch.join_slurm(batch)


@pytest.mark.parametrize(
    ("rank", "world", "said"),
    [("2", "2", "RANK is 2 and WORLD_SIZE is 2"), ("one", "2", "RANK is 'one'; accepted")],
)
def test_ranks_that_contradict_themselves_are_refused(
    monkeypatch: pytest.MonkeyPatch, rank: str, world: str, said: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(JobError, match=said):
        launch.rank_and_world()


def test_restarts_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.restarts_left() == 0
    for name, value in (("RANK", "0"), ("TORCHELASTIC_MAX_RESTARTS", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(launch.RESTARTS, "1")
    assert launch.restarts_left() == 2
    assert launch.may_restart()
