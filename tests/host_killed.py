"""A run in a host that is killed, and one that goes on: `python host_killed.py HOST FOLDER HOW`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import host_nine
import torch
from host_resume import SAVED, resume, start

from hatbus import Context, hookimpl, plugin


@plugin(stage="report")
class Dies:
    """Kills the process a few steps after the save."""

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        if ctx.position.global_step == SAVED + 3:
            os.kill(os.getpid(), signal.SIGKILL)


def main(host: str, folder: Path, how: str) -> None:
    torch.set_num_threads(1)
    plugins: dict[str, Any] = host_nine.nine(folder)
    if how == "kill":
        start(host, {**plugins, "dies": Dies()}, folder, epochs=2)
        raise SystemExit("nobody was killed")
    _, model = start(host, plugins, folder, 2) if how == "whole" else resume(host, plugins, folder)
    left = host_nine.what_is_left(model, plugins, folder)
    torch.save(left, folder / f"{how}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
