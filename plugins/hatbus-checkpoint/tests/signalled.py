"""Runs that get signals in chosen steps: ``signalled.py FOLDER PLANS`` prints their exit codes."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from kills import wait
from runs import trainer_of

from hatbus import hookimpl
from hatbus.loop import serve_requests


class Sends:
    """Sends this process the signals of a plan."""

    def __init__(self, plan: dict[str, list[int]]) -> None:
        self.plan = plan

    @hookimpl
    def on_step_begin(self, global_step_id: int) -> None:
        for number in self.plan.get(str(global_step_id), ()):
            os.kill(os.getpid(), number)


class StopsAtOnce:
    """Ends a resumed run before its first step, as a signal in a validation at its begin does."""

    @hookimpl(wrapper=True)
    def run_loop(self, ctx: Any) -> Generator[None, Any, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        serve_requests(ctx)
        return (yield)


def train(path: Path, plan: dict[str, list[int]]) -> int:
    sends: object = Sends(plan)
    if path.name == "terminate where it was resumed":
        trainer_of(path, save_interval=None).fit(num_steps=4)
        sends = StopsAtOnce()
    trainer = trainer_of(path, {"sends": sends}, save_interval=None)
    if path.name == "nobody saves":
        trainer.bus.unregister("checkpoint")
    try:
        trainer.fit(num_steps=6)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        return 130
    return 0


def main(folder: str, plans: str) -> dict[str, int | None]:
    codes = {}
    for name, plan in json.loads(plans).items():
        child = os.fork()
        if child == 0:
            os._exit(train(Path(folder) / name, plan))
        codes[name] = wait(child, 60)
    return codes


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
