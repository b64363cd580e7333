"""The context: the state of a run, and what a plugin can do through ``ctx``."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from hatbus.bus.moments import emit_after_error
from hatbus.bus.published import note_kind, plain_values
from hatbus.events.training import PAIRS
from hatbus.log import log
from hatbus.loop.control import Control
from hatbus.loop.module_names import AllModules
from hatbus.loop.shown import ShowsItself
from hatbus.loop.weights import EMA, Weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from hatbus.bus.bus import Bus, Emitter


class Context(ShowsItself):
    """What is so in a run just now. Every event argument of the same name is read from here.

    Attributes:
        bus: the bus that holds the plugins.
        emit: one callable (or None) per event, in the scope of the present task.
        control: takes requests, ``ctx.control.stop("run", "why")``: see ``hatbus.loop.Control``.
        weights: the weight views, ``with ctx.weights.showing("ema")``: see ``hatbus.loop.Weights``.
        model: the raw model.
        modules: those beside the model by name: a loss that is one (``"loss"``, ``"loss_<task>"``),
            and what the trainer's ``modules`` names.
        wrapped_model: what ``forward`` calls: the model, or its DDP or compiled wrapper.
        optimizer, data_loader, device, train_metrics, val_metrics: as given to the trainer.
        scaler: the ``torch.amp.GradScaler`` of a run in fp16, else None.
        data: the plan that turns loaders into steps (``hatbus.data.Steps``).
        batches: the present step's batches, each ``(task, batch, weight)``.
        task, batch, model_outs, losses: of the present batch; at step end ``losses`` of the step.
        loss: 0-d tensor that ``backward`` differentiates, weight included.
        epoch_id, step_id, global_step_id: 0-based counters; equal at begin and end of a thing.
        num_epochs, num_steps: the plan; one of them is None.
        steps_per_epoch: None when a loader has no length.
        total_steps: steps of the whole run; None when nobody can know.
        grad_norm: norm of the step's gradients before they are clipped, where a plugin knows it: a
            0-d tensor on its device, which the check for NaN then looks at; else None.
        weight: the present batch's share in the step's gradient.
        updates: committed optimizer updates so far.
        committed: whether the present step's update was committed.
        data_wait: seconds that the present step waited for its batches, once a plugin has set
            ``ctx.data.times_waits``.
        rank, world_size: of this process and of the run.
        seed: of the run.
        limit_steps: batches of each loader that a validation takes at most; None: all of them.
        latest: the last published value of every log name.
        storage: a place where plugins leave things for one another.
        exception: what is ending the run, else None.
        run_dir: folder of this run's files; None when the user named none.
        position: what the loop will do next (``epoch``, ``step`` in it, ``global_step``).
        began_at: steps that were behind the run when this ``fit`` went on: 0 in a new run, in a
            resumed one those of its checkpoint; known once ``on_loop_begin`` is over.
        part: what the names begin with that this run publishes in another one: ``"val"`` in a
            validation, empty in a training.
        is_aside: whether this is work beside a training, such as ``trainer.validate()``, of which
            nothing is written into the run's files.
    """

    _names: dict[str, set[str]]
    limit_steps: int | None
    num_steps: int | None
    __slots__ = (
        "_names",
        "batch",
        "batches",
        "began_at",
        "bus",
        "committed",
        "control",
        "data",
        "data_loader",
        "data_wait",
        "device",
        "emit",
        "epoch_id",
        "exception",
        "global_step_id",
        "grad_norm",
        "is_aside",
        "latest",
        "limit_steps",
        "loss",
        "losses",
        "model",
        "model_outs",
        "modules",
        "num_epochs",
        "num_steps",
        "optimizer",
        "part",
        "position",
        "rank",
        "run_dir",
        "scaler",
        "seed",
        "step_id",
        "steps_per_epoch",
        "storage",
        "task",
        "total_steps",
        "train_metrics",
        "updates",
        "val_metrics",
        "weight",
        "weights",
        "world_size",
        "wrapped_model",
    )

    def __init__(self, bus: Bus, **values: Any) -> None:
        self.bus = bus
        self.emit: Emitter = bus.emitter()
        self.control = Control(bus.callers)
        self.weights = Weights()
        self.model: torch.nn.Module = values.pop("model", None)
        self.wrapped_model: Any = values.pop("wrapped_model", self.model)
        self.modules: Mapping[str, torch.nn.Module] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        self.scaler: torch.amp.GradScaler | None = None
        self.data_loader: Any = None
        self.data: Any = None
        self.device: Any = None
        self.batches: list[tuple[str | None, Any, float]] = []
        self.task: str | None = None
        self.batch: Any = None
        self.model_outs: Any = None
        self.losses: dict[str, torch.Tensor] = {}
        self.loss: torch.Tensor | None = None
        self.epoch_id = self.step_id = self.global_step_id = self.began_at = 0
        self.num_epochs: int | None = None
        self.num_steps = self.limit_steps = None
        self.steps_per_epoch: int | None = None
        self.total_steps: int | None = None
        self.updates, self.committed, self.is_aside = 0, False, False
        self.grad_norm: torch.Tensor | None = None
        self.weight, self.data_wait, self.part, self._names = 1.0, 0.0, "", {}
        self.rank, self.world_size, self.seed = bus.rank, 1, 0
        self.train_metrics: Any = ()
        self.val_metrics: Any = ()
        self.latest: dict[str, Any] = {}
        self.storage: dict[str, Any] = {}
        self.exception: BaseException | None = None
        self.run_dir: Path | None = None
        self.position = Position()
        for name, value in values.items():
            setattr(self, name, value)

    @property
    def training(self) -> Context:
        """The training that this is part of: itself, but in a validation the run around it.

        What is to be told apart over a whole run, such as rows of a file, goes by its counters.
        """
        return self

    def name_in_run(self, name: str) -> str:
        """What the training's plugins see a published name as: the same, in a validation longer."""
        return name

    @property
    def loop(self) -> Context:
        """Itself, under the name that HAT's callbacks have for the run."""
        return self

    @property
    def grad_scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler of fp16, under HAT's name."""
        return self.scaler

    @property
    def ema_model(self) -> torch.nn.Module | None:
        """A copy of the model with the averages of the plugin ``ema``; None without it."""
        if EMA not in self.weights.names:
            return None
        with nullcontext() if self.weights.current == EMA else self.weights.showing(EMA):
            return copy.deepcopy(self.model)

    @property
    def all_modules(self) -> torch.nn.Module:
        """The model and the modules beside it as one, to look parameters and modules up in.

        Parts of the model have the names that they have in it. Where there is nothing beside it,
        this is the model.
        """
        return AllModules(self.model, self.modules) if self.modules else self.model

    def log(self, values: Mapping[str, Any], kind: str = "scalar") -> None:
        """Publishes values on the bus: every sink sees them, and ``latest`` keeps the last.

        Args:
            values: name to number, 0-d tensor (left on its device), image, histogram or text.
                Sinks may read a tensor later: do not change it afterwards, publish a copy.
                numpy's scalars and arrays of one element become Python numbers.
            kind: ``"scalar"``, ``"image"`` (CHW or HW, 0..1), ``"histogram"`` (any tensor) or
                ``"text"``.

        Raises:
            HookError: a name was published in another kind before; a sink shows one of a name.
        """
        if kind == "scalar":
            values = plain_values(values)
        names = self._names.get(kind)
        if names is None or not names.issuperset(values):
            note_kind(self._names, values, kind)
        self.latest.update(values)
        on_log = self.emit.on_log
        if on_log is not None:
            on_log(self, values, kind)

    def save(self, reason: str) -> Any:
        """Writes a checkpoint now, unless a plugin vetoes it.

        Args:
            reason: why, for the log and the checkpoint.

        Returns:
            What ``save_checkpoint`` returned: the path, or False when nobody saves or one vetoed.
        """
        vetoes = self.emit.veto_checkpoint and self.emit.veto_checkpoint(self, reason)
        for name, why in vetoes or ():
            log.info("no checkpoint (%s): vetoed by %s (%s)", reason, name, why)
        return False if vetoes else self.emit.save_checkpoint(self, reason)

    def within(self, span: str) -> AbstractContextManager[None]:
        """Emits the begin of a span now and its end on the way out; for loops of your own.

        Args:
            span: one that has moments, such as ``"run_step"`` (``hatbus.events.PAIRS``).
        """
        return _Within(self, span)


class _Within:
    """What ``Context.within`` gives: written out, a step costs half of what a generator takes."""

    __slots__ = ("_ctx", "_end", "_span")

    def __init__(self, ctx: Context, span: str) -> None:
        self._ctx, self._span = ctx, PAIRS[span]
        self._end: Any = None

    def __enter__(self) -> None:
        ctx, (begin, end) = self._ctx, self._span
        self._end, moment = getattr(ctx.emit, end), getattr(ctx.emit, begin)
        if moment is not None:
            try:
                moment(ctx)
            except BaseException as error:
                self._fail(error)
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any
    ) -> None:
        if error is not None:
            self._fail(error)
        elif self._end is not None:
            self._end(self._ctx)

    def _fail(self, error: BaseException) -> None:
        ctx = self._ctx
        outer, ctx.exception = ctx.exception, error
        emit_after_error(self._end, error, ctx)
        ctx.exception = outer


class Position:
    """What the loop does next: how many epochs, steps of the epoch, and steps are behind it.

    Attributes:
        epoch: whole epochs that are behind the run.
        step: steps of the present epoch that are; 0 between epochs.
        global_step: steps of the run that are.
    """

    __slots__ = ("epoch", "global_step", "step")

    def __init__(self, epoch: int = 0, step: int = 0, global_step: int = 0) -> None:
        self.epoch, self.step, self.global_step = epoch, step, global_step
