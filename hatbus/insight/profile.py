"""What a run spends its time on: calls and time per plugin and event, as a table and as a trace.

``Profile`` gives the bus a timed function for every plugin's implementation, and surrounds the
loop's own parts. Without a profile no such function exists, so it costs nothing when it is off.
"""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from hatbus.events.declare import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from pluggy import HookImpl
    from rich.table import Table

    from hatbus.bus.bus import Bus
    from hatbus.events.training import Event
    from hatbus.loop.context import Context

NOTABLE: Final = 0.1
"""Share of the run from which on an update is worth a hint."""
MOST_TRACED: Final = 200_000
"""Calls kept for the trace; later ones are counted but not drawn."""
SYNCHRONIZES: Final = "called a synchronizing CUDA operation"
"""What torch's warning says in the sync debug mode."""
PROTOTYPE: Final = "Synchronization debug mode is a prototype"
"""What torch says once when that mode is switched on."""


@dataclass(slots=True)
class Cost:
    """What one plugin, or the loop, cost in one event.

    Attributes:
        calls: how often it was called.
        seconds: in all, without what runs inside a wrapper and without events that the plugin
            emitted meanwhile (those have rows of their own).
        syncs: how often it made the host wait for the GPU.
    """

    calls: int = 0
    seconds: float = 0.0
    syncs: int = 0


class Profile:
    """Measures the plugins of one run.

    Attributes:
        costs: (plugin, event) to cost.
        seconds: time inside ``run_loop``, in all.
        steps: how many there were.
        hears_syncs: whether waits for a GPU are counted.
        update_is_slow: whether the optimizer's update could be made in one pass, and is not.
    """

    def __init__(self) -> None:
        self.costs: dict[tuple[str, str], Cost] = {}
        self.seconds = 0.0
        self.steps = 0
        self.hears_syncs = False
        self.untraced = 0
        self.update_is_slow = False
        self._trace: list[tuple[str, str, float, float]] = []
        self._running: list[_Part] = []
        self._began = time.perf_counter()

    def watch(self, bus: Bus) -> None:
        """Measures every plugin of a bus from now on."""
        bus.instrument = self.timed
        bus.register(_Run(self), "core.profile", core=True, outermost=True)

    def timed(self, event: Event, impl: HookImpl) -> Callable[..., Any]:
        """An implementation that measures itself."""
        cost = self.costs.setdefault((impl.plugin_name, event.name), Cost())
        function, name = impl.function, impl.plugin_name
        timed_part = partial(_Part, self)

        def call(*args: Any, **kwargs: Any) -> Any:
            cost.calls += 1
            with timed_part(cost, name, event.name):
                return function(*args, **kwargs)

        def wrap(*args: Any, **kwargs: Any) -> Generator[None, Any, Any]:
            cost.calls += 1
            generator: Any = function(*args, **kwargs)
            with timed_part(cost, name, event.name):
                try:
                    next(generator)
                except StopIteration:
                    return None  # a wrapper that does not yield; dispatch says so
            try:
                result = yield
            except BaseException as error:  # noqa: BLE001 - the plugin's own affair
                with timed_part(cost, name, event.name):
                    ended, result = _sent(generator, error, failed=True)
            else:
                with timed_part(cost, name, event.name):
                    ended, result = _sent(generator, result, failed=False)
            if not ended:
                yield  # a second time, as the plugin did; dispatch says so
            return result

        return wrap if impl.wrapper else call

    def table(self) -> Table:
        """Plugins and events, the dearest first."""
        from rich.table import Table

        title = f"what plugins and loop cost in {self.steps} steps, a run of {self.seconds:.2f} s"
        table = Table(title=title, box=None)
        for head in ("plugin", "event"):
            table.add_column(head, no_wrap=True)
        for head in ("calls", "total ms", "us each", "% of run"):
            table.add_column(head, justify="right")
        if self.hears_syncs:
            table.add_column("syncs", justify="right")
        for (plugin, event), cost in self.dearest():
            share = 100 * cost.seconds / self.seconds if self.seconds else 0.0
            each, total = cost.seconds / cost.calls * 1e6, cost.seconds * 1e3
            numbers = [f"{cost.calls}", f"{total:.2f}", f"{each:.1f}", f"{share:.2f}"]
            syncs = [str(cost.syncs or "")] if self.hears_syncs else []
            table.add_row(plugin, event, *numbers, *syncs)
        return table

    def dearest(self) -> list[tuple[tuple[str, str], Cost]]:
        """Every plugin and event that was called, by total time."""
        called = [item for item in self.costs.items() if item[1].calls]
        return sorted(called, key=lambda item: -item[1].seconds)

    def write_trace(self, path: Path) -> None:
        """Writes the calls as a trace that Perfetto and chrome://tracing open.

        Source: the Trace Event Format, "X" (complete) events, times in microseconds.
        """
        events = [
            {
                "name": plugin,
                "cat": event,
                "ph": "X",
                "ts": round((began - self._began) * 1e6, 3),
                "dur": round((ended - began) * 1e6, 3),
                "pid": 0,
                "tid": 0,
                "args": {"event": event},
            }
            for plugin, event, began, ended in self._trace
        ]
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), "utf-8")

    def part(self, plugin: str, event: str) -> _Part:
        """A part of the run to be timed, called once more."""
        cost = self.costs.setdefault((plugin, event), Cost())
        cost.calls += 1
        return _Part(self, cost, plugin, event)

    def is_within_a_plugin(self) -> bool:
        """Whether what runs now was started by a plugin."""
        return any(not one.plugin.startswith("core.") for one in self._running)

    def hint(self) -> str:
        """What would make the run faster; empty where nothing is known to."""
        update = self.costs.get(("core.batch_processor", "optimizer_step"), Cost())
        share = update.seconds / self.seconds if self.seconds else 0.0
        if not self.update_is_slow or share < NOTABLE:
            return ""
        return (
            f"the optimizer's update takes {share:.0%} of the run; make the optimizer with "
            "fused=True, and torch updates each parameter in one pass (the last bits differ)"
        )

    def note(self, plugin: str, event: str, began: float, ended: float) -> None:
        """Keeps one call for the trace."""
        if len(self._trace) < MOST_TRACED:
            self._trace.append((plugin, event, began, ended))
        else:
            self.untraced += 1

    def enter(self, part: _Part) -> None:
        """From here on time and waits for the GPU are charged to ``part``."""
        self._running.append(part)

    def leave(self, seconds: float) -> None:
        """The innermost part is over; the one around it is not charged its time."""
        self._running.pop()
        if self._running:
            self._running[-1].inside += seconds

    def charge_sync(self) -> None:
        """Charges a wait for the GPU to the plugin that is running."""
        if self._running:
            self._running[-1].cost.syncs += 1


class _Part:
    """The time of one part of a call."""

    __slots__ = ("began", "cost", "event", "inside", "plugin", "profile")

    def __init__(self, profile: Profile, cost: Cost, plugin: str, event: str) -> None:
        self.profile, self.cost, self.plugin, self.event = profile, cost, plugin, event
        self.began = self.inside = 0.0

    def __enter__(self) -> None:
        self.profile.enter(self)
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        ended = time.perf_counter()
        self.cost.seconds += ended - self.began - self.inside
        self.profile.leave(ended - self.began)
        self.profile.note(self.plugin, self.event, self.began, ended)


class _Run:
    """Measures the whole run and the loop's own parts, and hears torch's warnings about waits."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._waiting: _Part | None = None

    @hookimpl(wrapper=True, tryfirst=True)
    def run_loop(self, ctx: Context) -> Generator[None, Any, Any]:
        """Times the run, and hears the warnings of the sync debug mode while it is on."""
        is_on_gpu = ctx.device.type == "cuda"
        began = time.perf_counter()
        try:
            with _debugging_syncs(self._profile) if is_on_gpu else nullcontext():
                return (yield)
        finally:
            self._profile.seconds += time.perf_counter() - began
            self._profile.update_is_slow = is_slow_update(ctx.optimizer, ctx.device)

    @hookimpl(wrapper=True, tryfirst=True)
    def run_epoch(self, ctx: Context) -> Generator[None, Any, Any]:
        """Times the wait for the first batch; the one for more batches ends with the epoch."""
        self._wait()
        try:
            return (yield)
        finally:
            self._waited()

    @hookimpl(wrapper=True, tryfirst=True)
    def run_step(self, ctx: Context) -> Generator[None, Any, Any]:
        """Counts a step, and times the waits for a batch around it."""
        self._waited()
        self._profile.steps += 1
        try:
            return (yield)
        finally:
            self._wait()

    @hookimpl(wrapper=True, trylast=True)
    def forward(self, ctx: Context) -> Generator[None, Any, Any]:
        """Times the model."""
        return (yield from self._part("forward"))

    @hookimpl(wrapper=True, trylast=True)
    def compute_loss(self, ctx: Context) -> Generator[None, Any, Any]:
        """Times the loss."""
        return (yield from self._part("compute_loss"))

    @hookimpl(wrapper=True, trylast=True)
    def backward(self, ctx: Context) -> Generator[None, Any, Any]:
        """Times the gradients."""
        return (yield from self._part("backward"))

    @hookimpl(wrapper=True, trylast=True)
    def optimizer_step(self, ctx: Context) -> Generator[None, Any, Any]:
        """Times the update."""
        return (yield from self._part("optimizer_step"))

    def _part(self, event: str) -> Generator[None, Any, Any]:
        """Times a span of a step; of one that a plugin runs (a validation's) it is the plugin's."""
        if self._profile.is_within_a_plugin():
            return (yield)
        with self._profile.part("core.batch_processor", event):
            return (yield)

    def _wait(self) -> None:
        if self._waiting is None and not self._profile.is_within_a_plugin():
            self._waiting = self._profile.part("core.loop", "next batch")
            self._waiting.__enter__()

    def _waited(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.__exit__()


def is_slow_update(optimizer: Any, device: torch.device) -> bool:
    """Whether torch could make the optimizer's update in one pass (``fused``), and does not."""
    import torch

    if not isinstance(optimizer, torch.optim.Optimizer) or "fused" not in optimizer.defaults:
        return False
    is_able = device.type in ("cpu", "cuda", "mps", "xpu")
    return is_able and not any(group.get("fused") for group in optimizer.param_groups)


@contextmanager
def _debugging_syncs(profile: Profile) -> Iterator[None]:
    """Switches torch's sync debug mode on."""
    import torch

    before = torch.cuda.get_sync_debug_mode()
    with hearing_syncs(profile):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


@contextmanager
def hearing_syncs(profile: Profile) -> Iterator[None]:
    """Charges torch's warnings about waits for the GPU to the running plugin.

    Those of other threads are nobody's: a writer that waits in the background holds up no step.
    """
    profile.hears_syncs = True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=PROTOTYPE)
        warnings.filterwarnings("always", message=SYNCHRONIZES)
        show, loop = warnings.showwarning, threading.get_ident()

        def hear(message: Any, *rest: Any, **more: Any) -> None:
            if SYNCHRONIZES in str(message):
                if threading.get_ident() == loop:
                    profile.charge_sync()
            else:
                show(message, *rest, **more)

        warnings.showwarning = hear
        yield


def _sent(generator: Any, value: Any, *, failed: bool) -> tuple[bool, Any]:
    """Gives a wrapper's generator a result or an error; whether it ended, and what it returned."""
    try:
        if failed:
            generator.throw(value)
        else:
            generator.send(value)
    except StopIteration as stop:
        return True, stop.value
    generator.close()
    return False, None
