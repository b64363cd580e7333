"""``LightningCallback``: a callback of Lightning as a plugin of hatbus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus import hookimpl, plugin
from hatbus.errors import PluginError
from hatbus_hosts.adapting import adapted
from hatbus_hosts.lightning_stand_in import TrainerStandIn, module_of
from hatbus_hosts.versions import check_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hatbus import Context

REFUSED: Final = {
    "ModelCheckpoint": "hatbus's plugin checkpoint saves",
    "OnExceptionCheckpoint": "hatbus's plugin checkpoint saves",
    "GradientAccumulationScheduler": "give Trainer(accumulate=...)",
    "BatchSizeFinder": "choose the batch size in the loader",
    "LearningRateFinder": "choose the learning rate in the optimizer",
    "StochasticWeightAveraging": "hatbus's plugin ema averages weights",
    "ProgressBar": "hatbus's plugin progress shows the progress",
    "BasePredictionWriter": "trainer.predict gives the outputs",
    "ModelSummary": "it needs what only Lightning knows of a module",
}
"""Classes of Lightning's that cannot run here, and what does it in their place."""
_WHY: Final = "a callback of Lightning"


@plugin(stage="report")
class LightningCallback:
    """Runs a callback of Lightning that uses its documented hooks and little of the trainer.

    It is given a stand-in for Lightning's trainer, with what such callbacks ask for
    (``TrainerStandIn``), and a ``LightningModule`` around the model. What is not there is an error
    that names it. In a job the callback may also be named itself:
    ``use = "lightning.pytorch.callbacks:EarlyStopping"``.

    Args:
        callback: the ``Callback``, of ``lightning`` or ``pytorch_lightning``.

    Raises:
        PluginError: it is none, or one of those that cannot run here.
    """

    def __init__(self, callback: Any) -> None:
        check_version("lightning", "pytorch-lightning")
        bases = {base.__name__: base.__module__ for base in type(callback).__mro__}
        home = bases.get("Callback", "")
        if not home.startswith(("lightning.", "pytorch_lightning.")):
            raise PluginError(f"lightning_callback: {callback!r:.80} is no Callback of Lightning's")
        for name, instead in REFUSED.items():
            if name in bases:
                raise PluginError(
                    f"lightning_callback: {type(callback).__name__} cannot run here; {instead}"
                )
        self.callback = callback
        self._package = home.partition(".callbacks")[0]
        self._trainer: TrainerStandIn | None = None
        self._module: Any = None

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Tells the callback that a fit begins; states were given back before."""
        self._trainer = TrainerStandIn(ctx, self.callback, self._package)
        self._module = module_of(ctx, self._trainer, self._package)
        self.callback.setup(self._trainer, self._module, "fit")
        self._call(ctx, "on_fit_start")
        self._call(ctx, "on_train_start")

    @hookimpl
    def on_epoch_begin(self, ctx: Context) -> None:
        """Passes it on."""
        self._call(ctx, "on_train_epoch_start")

    @hookimpl
    def on_batch_begin(self, ctx: Context, batch: Any) -> None:
        """Passes it on; the index counts steps, or batches where a step has several."""
        self._call(ctx, "on_train_batch_start", batch, self._index(ctx))

    @hookimpl
    def on_backward_begin(self, ctx: Context) -> None:
        """Passes it on."""
        self._call(ctx, "on_before_backward", ctx.loss)

    @hookimpl
    def on_backward_end(self, ctx: Context) -> None:
        """Passes it on."""
        if ctx.exception is None:
            self._call(ctx, "on_after_backward")

    @hookimpl
    def on_optimizer_step_begin(self, ctx: Context, optimizer: torch.optim.Optimizer) -> None:
        """Passes it on: gradients are clipped already, which Lightning does after this."""
        self._call(ctx, "on_before_optimizer_step", optimizer)

    @hookimpl
    def on_step_end(self, ctx: Context, losses: Mapping[str, torch.Tensor]) -> None:
        """Passes on the end of the step's last batch."""
        if ctx.exception is not None or self._trainer is None:
            return
        outputs = {"loss": sum(loss.detach() for loss in losses.values())}
        batch = ctx.batches[-1][1] if ctx.batches else None
        self._trainer.batches += len(ctx.batches)
        index = self._index(ctx) + len(ctx.batches) - 1
        self._call(ctx, "on_train_batch_end", outputs, batch, index)

    @hookimpl
    def on_validation_begin(self, ctx: Context) -> None:
        """Passes it on."""
        self._call(ctx, "on_validation_start")
        self._call(ctx, "on_validation_epoch_start")

    @hookimpl
    def on_validation_end(self, ctx: Context) -> None:
        """Passes it on, with everything published so far as the trainer's metrics."""
        if ctx.exception is None:
            self._call(ctx, "on_validation_epoch_end")
            self._call(ctx, "on_validation_end")

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        """Passes it on."""
        if ctx.exception is None:
            self._call(ctx, "on_train_epoch_end")

    @hookimpl
    def on_exception(self, ctx: Context, exception: BaseException) -> None:
        """Passes it on."""
        if self._trainer is not None:
            self._call(ctx, "on_exception", exception)

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Passes it on, unless an error ended the run; its teardown always comes."""
        if self._trainer is None:
            return
        if ctx.exception is None:
            self._call(ctx, "on_train_end")
            self._call(ctx, "on_fit_end")
        self.callback.teardown(self._trainer, self._module, "fit")
        self._trainer = self._module = None

    def state_dict(self) -> dict[str, Any]:
        """The callback's own state."""
        return dict(self.callback.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives it back."""
        self.callback.load_state_dict(dict(state))

    def _call(self, ctx: Context, hook: str, *given: Any) -> None:
        trainer = self._trainer
        if trainer is None:
            return
        getattr(self.callback, hook)(trainer, self._module, *given)
        if trainer.should_stop:
            trainer.should_stop = False
            ctx.control.stop("run", _WHY)

    def _index(self, ctx: Context) -> int:
        return ctx.step_id * max(len(ctx.batches), 1)


def plugin_class(cls: type[Any]) -> type[Any]:
    """The plugin class of a class of callbacks, for a job that names it."""
    return adapted(LightningCallback, cls)
