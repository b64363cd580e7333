"""``summarize``: the modules of a model on a real batch, and the time of a step.

The table is torchinfo's; what a module is given is taken from the trainer's own forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median_low
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus import hookimpl
from hatbus.data import samples_in
from hatbus.errors import JobError
from hatbus.log import log
from hatbus.option_values import whole

if TYPE_CHECKING:
    from hatbus import Context, Trainer

_COLUMNS: Final = ("input_size", "output_size", "num_params", "trainable")
PHASES: Final = ("data", "forward", "backward")


@dataclass
class Summary:
    """What there is to be known of a model before it is trained.

    Attributes:
        table: the modules, as text.
        parameters: how many numbers the model's parameters have.
        trainable: how many of them get gradients.
        samples: of a step; None where nobody can tell.
        step: seconds of a step, the median after the first one.
        parts: ``"data"``, ``"forward"`` and ``"backward"`` to their seconds of that step.
        memory: bytes of the GPU's memory at its peak; None on a CPU.
    """

    table: str = ""
    parameters: int = 0
    trainable: int = 0
    samples: int | None = None
    step: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    memory: int | None = None

    def __str__(self) -> str:
        """The table, then the times in a line."""
        rest = self.step - sum(self.parts.values())
        parts = [f"{name} {1e3 * one:.3g}" for name, one in {**self.parts, "rest": rest}.items()]
        size = f" of {self.samples} samples" if self.samples else ""
        speed = f"; {self.samples / self.step:,.0f} samples/s" if self.samples else ""
        peak = f"; {self.memory / 2**20:,.0f} MiB at the peak" if self.memory else ""
        line = f"a step{size}: {1e3 * self.step:.3g} ms ({', '.join(parts)}){speed}{peak}"
        return f"{self.table}\n{line}"


def summarize(trainer: Trainer, num_steps: int = 5, depth: int = 3) -> Summary:
    """Looks at a trainer's model, and leaves everything as it was (``Trainer.rehearse``).

    Args:
        trainer: with all that trains.
        num_steps: real steps that are timed; the first, which warms up, does not count.
        depth: of modules in modules that the table shows.

    Raises:
        JobError: torchinfo is missing, or a number is none.
    """
    whole("num_steps", num_steps, 2)
    whole("depth", depth, 1)
    try:
        import torchinfo as _  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise JobError(
            "a summary needs torchinfo, which is not installed; python -m pip install torchinfo"
        ) from error
    look = Look(depth)
    trainer.rehearse(num_steps, {"summary": look})
    return look.summary


class Look:
    """The plugin that takes times, and in the end asks torchinfo.

    Args:
        depth: of modules in modules.
    """

    def __init__(self, depth: int) -> None:
        self.summary = Summary()
        self._depth = depth
        self._given: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._took: dict[str, list[float]] = {name: [] for name in ("step", *PHASES)}
        self._began: dict[str, float] = {}

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Counts parameters, and has what the model is given told."""
        every = list(ctx.model.parameters())
        self.summary.parameters = sum(one.numel() for one in every)
        self.summary.trainable = sum(one.numel() for one in every if one.requires_grad)
        ctx.data.times_waits = True
        ctx.model.register_forward_pre_hook(self._note_given, with_kwargs=True)

    @hookimpl(tryfirst=True)
    def on_step_begin(self, ctx: Context) -> None:
        """A step begins, its data being there."""
        self._begin("step", ctx)
        self._took["data"].append(ctx.data_wait)
        for name in ("forward", "backward"):
            self._took[name].append(0.0)

    @hookimpl(tryfirst=True)
    def on_forward_begin(self, ctx: Context) -> None:
        """A forward pass begins."""
        self._begin("forward", ctx)

    @hookimpl(tryfirst=True)
    def on_forward_end(self, ctx: Context) -> None:
        """It ends."""
        self._took["forward"][-1] += self._end("forward", ctx)

    @hookimpl(tryfirst=True)
    def on_backward_begin(self, ctx: Context) -> None:
        """A backward pass begins."""
        self._begin("backward", ctx)

    @hookimpl(tryfirst=True)
    def on_backward_end(self, ctx: Context) -> None:
        """It ends."""
        self._took["backward"][-1] += self._end("backward", ctx)

    @hookimpl(trylast=True)
    def on_step_end(self, ctx: Context) -> None:
        """A step ends."""
        if ctx.exception is None:
            self._took["step"].append(self._end("step", ctx) + self._took["data"][-1])
            sizes = [samples_in(batch) or 0 for _, batch, _ in ctx.batches]
            self.summary.samples = sum(sizes) or None

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Makes the summary."""
        if ctx.exception is not None:
            return
        found = self.summary
        steps = self._took["step"]
        found.step = median_low(steps[1:] or steps)
        at = steps.index(found.step)
        found.parts = {name: self._took[name][at] for name in PHASES}
        if ctx.device.type == "cuda":
            found.memory = torch.cuda.max_memory_allocated(ctx.device)
        found.table = self._table(ctx)

    def _table(self, ctx: Context) -> str:
        from torchinfo import summary

        if self._given is None:
            raise JobError("the model was not called in a step, so there is nothing to be shown")
        args, kwargs = self._given
        self._given = None
        options: dict[str, Any] = {"depth": self._depth, "verbose": 0, "col_names": _COLUMNS}
        try:
            made = summary(ctx.model, input_data=args or kwargs, **options, **_rest(args, kwargs))
        except Exception as error:  # noqa: BLE001 - torchinfo's limits; the rest is of use
            log.warning("no shapes: torchinfo cannot call the model: %s", error)
            made = summary(ctx.model, depth=self._depth, verbose=0)
        return str(made)

    def _note_given(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._given is None:
            self._given = (args, dict(kwargs))

    def _begin(self, what: str, ctx: Context) -> None:
        self._began[what] = _now(ctx)

    def _end(self, what: str, ctx: Context) -> float:
        return _now(ctx) - self._began[what]


def _rest(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keywords beside positional inputs."""
    return kwargs if args else {}


def _now(ctx: Context) -> float:
    """Seconds, when all that was asked of the device is done."""
    if ctx.device.type == "cuda":
        torch.cuda.synchronize(ctx.device)
    return time.perf_counter()
