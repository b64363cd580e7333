"""Profiles steps of the first validation with ``torch.profiler``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from hatbus import hookimpl, option_values, plugin
from hatbus.errors import JobError, PluginError, did_you_mean
from hatbus.log import log

if TYPE_CHECKING:
    from hatbus import Context

SCHEDULE: Final = {"skip_first": 0, "wait": 1, "warmup": 1, "active": 3, "repeat": 1}
_OWN: Final = (
    "schedule",
    "on_trace_ready",
    "execution_trace_observer",
    "use_cuda",
    "custom_trace_id_callback",
)
_PASSED_ON: Final = tuple(n for n in inspect.signature(profile).parameters if n not in _OWN)
OPTIONS: Final = (*SCHEDULE, *_PASSED_ON, "trace_dir")
TYPES: Final = ("SimpleProfiler", "PythonProfiler", "MemoryProfiler")
"""HAT's kinds of profiler, which are all torch's here."""


@plugin(stage="report", ranks="zero")
class ProfileSteps:
    """Writes ``<trace_dir>/validation-step-<n>.<m>.pt.trace.json``, for Perfetto or TensorBoard.

    Args:
        options: ``trace_dir`` (by default ``profile`` in the run's folder); ``wait``, ``warmup``,
            ``active``, ``repeat``, ``skip_first``: steps, as for ``torch.profiler.schedule``;
            ``activities`` as a list of ``"cpu"``, ``"cuda"``; anything else that
            ``torch.profiler.profile`` takes, such as ``record_shapes`` or ``with_stack``.

    Raises:
        JobError: no table.
        PluginError: an option that does not exist.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        if not isinstance(options, Mapping):
            raise JobError(
                f"validation: profiler is {options!r:.80}; accepted: a table of options, such as "
                "{'wait': 1, 'active': 3}"
            )
        options = _without_type(options)
        for name in options:
            if name not in OPTIONS:
                raise PluginError(
                    f"validation: unknown profiler option {name!r}{did_you_mean(name, OPTIONS)}"
                )
        self.options = dict(options)
        self.options["activities"] = activities(options.get("activities"))
        place = self.options.get("trace_dir")
        self._given = option_values.path("validation: trace_dir", place) if place else None
        self._profile: profile | None = None
        self._is_done = False

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Starts, in the first validation."""
        if self._is_done:
            return
        self._is_done = True
        step = getattr(ctx, "outer", ctx).global_step_id
        steps = {name: self.options.get(name, default) for name, default in SCHEDULE.items()}
        self._profile = profile(
            schedule=schedule(**steps),
            on_trace_ready=lambda done: write(done, self._folder(ctx), step),
            **{name: self.options[name] for name in _PASSED_ON if name in self.options},
        )
        self._profile.start()

    @hookimpl
    def on_step_end(self) -> None:
        """Goes on to the next step of the schedule."""
        if self._profile is not None:
            self._profile.step()

    @hookimpl
    def on_loop_end(self) -> None:
        """Stops, also after an error."""
        running, self._profile = self._profile, None
        if running is not None:
            running.stop()

    def _folder(self, ctx: Context) -> Path:
        return self._given or (ctx.run_dir or Path()) / "profile"


def write(done: profile, folder: Path, step: int) -> None:
    """Writes one trace."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"validation-step-{step}.{done.step_num}.pt.trace.json"
    done.export_chrome_trace(str(path))
    log.info("validation: profile written to %s", path)


def activities(names: Any) -> list[ProfilerActivity]:
    """What is profiled: the CPU, and CUDA where there is one, unless it was said.

    Raises:
        PluginError: an unknown activity.
    """
    known = {str(a).rpartition(".")[2].lower(): a for a in ProfilerActivity.__members__.values()}
    if names is None:
        names = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for name in names:
        if isinstance(name, str) and name.lower() not in known:
            raise PluginError(
                f"validation: unknown profiler activity {name!r}{did_you_mean(name, known)}"
            )
    return [known[name.lower()] if isinstance(name, str) else name for name in names]


def profiler_options(**options: Any) -> dict[str, Any]:
    """What a config of type ``SimpleProfiler`` makes: the options of ``ProfileSteps``."""
    return options


def _without_type(options: Mapping[str, Any]) -> dict[str, Any]:
    """HAT's options under their names here: ``dirpath`` is ``trace_dir``.

    Raises:
        PluginError: a kind of profiler that there is not.
    """
    found = dict(options)
    kind = found.pop("type", TYPES[0])
    if kind not in TYPES:
        raise PluginError(
            f"validation: unknown profiler type {kind!r}{did_you_mean(str(kind), TYPES)}"
        )
    if "dirpath" in found:
        found["trace_dir"] = found.pop("dirpath")
    return found
