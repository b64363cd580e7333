"""What a callback of Lightning is given in place of Lightning's trainer and module."""

from __future__ import annotations

import copy
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from hatbus.errors import PluginError

if TYPE_CHECKING:
    from hatbus import Context


class TrainerStandIn:
    """The part of Lightning's trainer that callbacks with documented hooks ask for.

    Anything else is refused with its name.

    Args:
        ctx: of the run.
        callback: that is given this.
        package: ``"lightning.pytorch"`` or ``"pytorch_lightning"``.
    """

    def __init__(self, ctx: Context, callback: Any, package: str) -> None:
        states = import_module(f"{package}.trainer.states")
        self._ctx, self._callback = ctx, callback
        self.batches = ctx.position.global_step
        self.should_stop = self.sanity_checking = self.fast_dev_run = False
        self.training, self.validating = True, False
        self.check_val_every_n_epoch, self.val_check_interval = 1, 1.0
        self.accumulate_grad_batches = 1
        self.state = SimpleNamespace(
            fn=states.TrainerFn.FITTING, stage=states.RunningStage.TRAINING
        )
        self.strategy = _Strategy(ctx)
        kind = "CUDAAccelerator" if str(ctx.device).startswith("cuda") else "CPUAccelerator"
        self.accelerator = getattr(import_module(f"{package}.accelerators"), kind)()
        self.loggers = [_Logger(ctx)]
        self.logger = self.loggers[0]
        self.callbacks = [callback]
        self.lr_scheduler_configs: list[Any] = []
        self.datamodule = None
        self.global_rank, self.world_size = ctx.rank, ctx.world_size
        self.local_rank, self.num_nodes, self.num_devices = ctx.rank, 1, 1
        self.is_global_zero = ctx.rank == 0
        self.max_epochs = ctx.num_epochs
        self.max_steps = -1 if ctx.num_steps is None else ctx.num_steps
        self.max_time, self.min_epochs, self.min_steps = None, None, None
        self.default_root_dir = str(ctx.run_dir or ".")
        self.log_dir = self.default_root_dir
        self.num_training_batches = ctx.steps_per_epoch or float("inf")
        self.enable_validation = bool(ctx.bus.implementations("validate"))
        self.train_dataloader = ctx.data_loader
        self.fit_loop = SimpleNamespace(epoch_loop=_EpochLoop(self))
        self._logger_connector = SimpleNamespace(should_update_logs=True)
        self._more: dict[str, Any] = {}

    @property
    def current_epoch(self) -> int:
        """The epoch, from 0."""
        return self._ctx.epoch_id

    @property
    def global_step(self) -> int:
        """Updates so far."""
        return self._ctx.updates

    @property
    def optimizers(self) -> list[Any]:
        """The one optimizer."""
        return [self._ctx.optimizer]

    @property
    def callback_metrics(self) -> dict[str, Any]:
        """What was published, as tensors; what a callback adds stays."""
        numbers = {n: v for n, v in self._ctx.latest.items() if _is_number(v)}
        self._more.update({name: torch.as_tensor(value) for name, value in numbers.items()})
        return self._more

    @property
    def logged_metrics(self) -> dict[str, Any]:
        """The same."""
        return self.callback_metrics

    def save_checkpoint(self, *_: Any, **__: Any) -> None:
        """Asks hatbus for a checkpoint, in its own place."""
        self._ctx.control.save("a callback of Lightning")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        who = type(self.__dict__.get("_callback")).__name__
        raise PluginError(
            f"lightning_callback: {who} asks for trainer.{name}, which is not there in hatbus; "
            "run it in Lightning, or use a plugin of hatbus in its place"
        )


class _EpochLoop:
    """The counter of batches that monitors of Lightning's ask for."""

    def __init__(self, trainer: TrainerStandIn) -> None:
        self._trainer = trainer

    @property
    def _batches_that_stepped(self) -> int:
        return self._trainer.global_step


class _Strategy:
    """One process, one device."""

    zero_stage_3 = False

    def __init__(self, ctx: Context) -> None:
        self.root_device = ctx.device
        self.is_global_zero = ctx.rank == 0

    @staticmethod
    def reduce_boolean_decision(decision: bool, all: bool = True) -> bool:  # noqa: A002, ARG004 - Lightning's name
        """As decided here."""
        return decision

    @staticmethod
    def broadcast(value: Any, src: int = 0) -> Any:  # noqa: ARG004 - Lightning's name
        """The same value."""
        return value

    @staticmethod
    def barrier(*_: Any) -> None:
        """Waits for nobody."""


class _Logger:
    """Publishes on the bus what a callback logs."""

    name, version, save_dir, group_separator = "hatbus", 0, None, "/"

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Publishes numbers; the step is the bus's own."""
        numbers = {name: value for name, value in metrics.items() if _is_number(value)}
        if numbers:
            self._ctx.log(numbers)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: the job has them."""

    def save(self) -> None:
        """Nothing is kept."""


class _Module:
    """What a ``LightningModule`` around the model has of its own."""

    def __init__(self, ctx: Context, trainer: TrainerStandIn) -> None:
        super().__init__()
        self.__dict__["_told"] = ctx, trainer
        self.model = ctx.model

    @property
    def trainer(self) -> TrainerStandIn:
        """The stand-in."""
        return self.__dict__["_told"][1]  # type: ignore[no-any-return]  # as it was put there

    @property
    def device(self) -> Any:
        """The run's."""
        return self.__dict__["_told"][0].device

    def forward(self, *given: Any, **named: Any) -> Any:
        """The model's."""
        return self.model(*given, **named)

    def log(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        """Publishes a number."""
        self.__dict__["_told"][0].log({name: value})

    def log_dict(self, values: Any, *_: Any, **__: Any) -> None:
        """Publishes numbers."""
        self.__dict__["_told"][0].log(dict(values))

    def optimizers(self, *_: Any, **__: Any) -> Any:
        """The one optimizer."""
        return self.__dict__["_told"][0].optimizer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)  # type: ignore[misc]  # a module's
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def __deepcopy__(self, memo: Any) -> Any:
        ctx, trainer = self.__dict__["_told"]
        made = type(self)(ctx, trainer)
        made.model = copy.deepcopy(ctx.model, memo)
        return made


def module_of(ctx: Context, trainer: TrainerStandIn, package: str) -> Any:
    """A ``LightningModule`` around the model; what it lacks is looked up in the model."""
    base: Any = import_module(package).LightningModule
    return type("Module", (_Module, base), {})(ctx, trainer)


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float))
