"""What a run is: its job, the order of its plugins, and its hyperparameters, for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from hatbus_tensorboard.scalars import is_scalar

if TYPE_CHECKING:
    from hatbus import Context


def texts(ctx: Context) -> dict[str, str]:
    """Name to Markdown."""
    lines = ["plugin | class | stage", "--- | --- | ---"]
    for placed in ctx.bus.order():
        member = ctx.bus.members[placed.name]
        kind = type(member.plugin).__qualname__
        lines.append(f"{member.name} | {kind} | {member.declared.stage}")
    found = {"run/plugins": "\n".join(lines)}
    job = job_of(ctx)
    if job:
        code = json.dumps(job, indent=2, default=str)
        found["run/job"] = "\n".join(f"    {line}" for line in code.splitlines())
    return found


def job_of(ctx: Context) -> dict[str, Any]:
    """The tables of the job that is run; empty when there is none."""
    job: dict[str, Any] = ctx.storage.get("job", {})
    return job


def hyperparameters(ctx: Context) -> dict[str, bool | int | float | str]:
    """The optimizer's options and the job's, as far as they are single values.

    Left out is what distinguishes no run from another: where the job's code and files are, and that
    a plugin that is on is on.
    """
    job = job_of(ctx)
    found: dict[str, bool | int | float | str] = {} if job else {"seed": ctx.seed}
    if ctx.optimizer is not None:
        found["optimizer"] = type(ctx.optimizer).__name__
        found.update(_leaves(ctx.optimizer.defaults, "optimizer."))
    run = {n: v for n, v in job.get("run", {}).items() if n not in ("entry", "run_dir", "args")}
    found.update(_leaves(run, "run."))
    found.update(_leaves(job.get("run", {}).get("args", {}), "args."))
    for name, table in job.get("plugins", {}).items():
        options = {n: v for n, v in table.items() if n not in ("use", "enabled", "save_dir")}
        if table.get("enabled", True):
            found.update(_leaves(options, f"{name}.") if options else {name: True})
    return found


def last_metrics(ctx: Context) -> dict[str, float]:
    """The last value of every published scalar; reads them from the device."""
    return {
        name: float(value.item() if isinstance(value, torch.Tensor) else value)
        for name, value in ctx.latest.items()
        if is_scalar(value)
    }


def _leaves(
    table: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, bool | int | float | str]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, (bool, int, float, str)):
            yield f"{prefix}{name}", value
