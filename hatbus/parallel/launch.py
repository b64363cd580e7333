"""How this process was started: by torchrun, by SLURM's ``srun``, or alone. Imports no torch."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from hatbus.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

RESTARTS: Final = "TORCHELASTIC_RESTART_COUNT"
"""Set by torchrun: how often it has started its processes again."""
RANKS_FOLDER: Final = "ranks"
"""In a run's folder: the logs of all processes but the first, whose is ``run.log``."""
_ORPHAN_S: Final = 30.0
_FIRST_PORT: Final = 15000
_PORTS: Final = 20000
_HOST: Final = re.compile(r"((?:[^,\[]|\[[^\]]*\])+)")
_RANGE: Final = re.compile(r"\[(\d+)[^\]]*\]")


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) when it is alone.

    They are those of the process group, where one exists, else as torchrun or ``srun`` set them.

    Raises:
        JobError: what is set contradicts itself.
    """
    found = sys.modules.get("torch.distributed")
    if found is not None and found.is_available() and found.is_initialized():
        return found.get_rank(), found.get_world_size()
    join_slurm()
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not 0 <= rank < world:
        raise JobError(
            f"RANK is {rank} and WORLD_SIZE is {world}; ranks count from 0 to WORLD_SIZE - 1: "
            "start the processes by torchrun or srun, which set both"
        )
    return rank, world


def is_by_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun's agent started this process, and watches it."""
    return RESTARTS in environment and "RANK" in environment


def restarts() -> int:
    """How often torchrun has started its processes again; 0 at the first start."""
    return _number(RESTARTS, 0)


def may_restart() -> bool:
    """Whether torchrun starts its processes again when one fails, or has done so."""
    return is_by_torchrun() and _number("TORCHELASTIC_MAX_RESTARTS", 0) > 0


def restarts_left() -> int:
    """How often torchrun would still start its processes again."""
    return _number("TORCHELASTIC_MAX_RESTARTS", 0) - restarts() if is_by_torchrun() else 0


def leave_with_agent() -> None:
    """Ends this process some time after torchrun's agent has gone, which would end it otherwise.

    First it is asked to, as by a signal: a run that is under way saves, and stops.
    """
    if not is_by_torchrun() or any(t.name == "hatbus parent" for t in threading.enumerate()):
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_S)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="hatbus parent", daemon=True).start()


def join_slurm(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets for the tasks of an ``srun`` step what torchrun sets for its processes.

    Nothing where that is set already, and in a step of one task. The first host of the step is
    where they meet.

    Raises:
        JobError: several tasks are reserved, and this process was not started by ``srun``.
    """
    task, tasks = environment.get("SLURM_PROCID"), _slurm(environment, "NUM_TASKS", "SLURM_NTASKS")
    if "RANK" in environment or "WORLD_SIZE" in environment or task is None or tasks in ("", "1"):
        return
    if "SLURM_STEP_ID" not in environment and "SLURM_STEPID" not in environment:
        raise JobError(
            f"SLURM_NTASKS is {tasks}, and this process (SLURM_PROCID={task}) was not started by "
            "srun, so the others would be missing; write `srun hatbus run JOB`, or reserve one "
            "task and start torchrun in it"
        )
    hosts = _slurm(environment, "NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    alone = _slurm(environment, "NUM_NODES", "SLURM_NNODES") == "1" or not hosts
    environment["RANK"], environment["WORLD_SIZE"] = task, tasks
    environment["LOCAL_RANK"] = environment.get("SLURM_LOCALID", task)
    environment.setdefault("MASTER_ADDR", "localhost" if alone else first_host(hosts))
    environment.setdefault("MASTER_PORT", str(_port(environment)))


def first_host(hosts: str) -> str:
    """The first host of SLURM's short form of a list.

    >>> first_host("rack[2-4]node[07,11-12],login1")
    'rack2node07'
    """
    found = _HOST.match(hosts)
    return _RANGE.sub(r"\1", found[1]) if found else hosts


def _port(environment: Mapping[str, str]) -> int:
    """A port that all tasks of a step find, and those of another step of the job do not."""
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", "0"))
    job = environment.get("SLURM_JOB_ID", "0")
    number = int("".join(c for c in f"{job}{int(step) % 100:02}" if c.isdigit()))
    return _FIRST_PORT + number % _PORTS


def _slurm(environment: Mapping[str, str], of_step: str, *of_job: str) -> str:
    """A value of the step, else of the job."""
    names = (f"SLURM_STEP_{of_step}", *of_job)
    return next((environment[name] for name in names if environment.get(name)), "")


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else otherwise
    except ValueError as error:
        raise JobError(f"{name} is {text!r}; accepted: a whole number, as torchrun sets") from error
