"""A run in a host by its name, and plugins that count, fail and are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from host_loops import HOSTS, new_model

from hatbus import hookimpl

FOREIGN = [host for host in HOSTS if host != "plain"]


def run(host: str, plugins: Any, folder: Path, epochs: int = 2, **options: Any) -> Any:
    """Runs in a host; gives the model and what the runner gives."""
    model = new_model()
    if host == "transformers":
        options["folder"] = folder / "out"
    return model, HOSTS[host](model, plugins, epochs, **options)


class Counts:
    """Counts batches and steps, and takes the losses of steps."""

    def __init__(self) -> None:
        self.batches = self.steps = 0
        self.losses: list[float] = []

    @hookimpl
    def on_batch_end(self) -> None:
        self.batches += 1

    @hookimpl
    def on_step_end(self, losses: Any) -> None:
        self.steps += 1
        self.losses.append(losses["loss"].item())


class Fails:
    @hookimpl
    def on_step_end(self, global_step_id: int) -> None:
        if global_step_id == 2:
            raise ZeroDivisionError("mine")


class Told:
    def __init__(self) -> None:
        self.events: list[str] = []

    @hookimpl
    def on_exception(self, exception: BaseException) -> None:
        self.events.append(f"on_exception {exception}")

    @hookimpl
    def on_loop_end(self) -> None:
        self.events.append("on_loop_end")
