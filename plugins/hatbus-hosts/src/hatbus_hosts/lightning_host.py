"""``LightningHost``: plugins in Lightning's ``Trainer``."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hatbus.errors import PluginError, did_you_mean
from hatbus.log import log
from hatbus.loop import Position
from hatbus_hosts.capabilities import LIGHTNING
from hatbus_hosts.host import Host
from hatbus_hosts.states import NOTHING_SAVED
from hatbus_hosts.versions import check_version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hatbus import Bus, Context
    from hatbus_hosts.needs import Capabilities

    Callback: Any
elif "lightning.pytorch" in sys.modules or "pytorch_lightning" not in sys.modules:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback
else:
    from pytorch_lightning import Callback


class LightningHost(Host, Callback):  # type: ignore[misc]  # typed as Any
    """Plugins in Lightning's ``Trainer``: ``Trainer(callbacks=[LightningHost(plugins)])``.

    What plugins keep is in Lightning's checkpoints as this callback's state.

    Args:
        plugins: as for ``Host``.
        model: name of the submodule that plugins see as the model, such as ``"net"``; empty: the
            ``LightningModule``.
        key: tells its state in checkpoints apart from that of another host in the same trainer.
        options: of ``Host``.

    Raises:
        PluginError: a plugin that cannot be used here.
    """

    name: ClassVar[str] = "LightningHost"
    capabilities: ClassVar[Capabilities] = LIGHTNING

    def __init__(
        self,
        plugins: Sequence[object] | Mapping[str, object] | Bus,
        *,
        model: str = "",
        key: str = "",
        **options: Any,
    ) -> None:
        check_version("lightning", "pytorch-lightning")
        super().__init__(plugins, **options)
        self._module, self._key = model, key
        self._accumulated = 1

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint."""
        return f"{self.name}({self._key})" if self._key else self.name

    # ---- what the trainer says ----------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The run begins; states were given back before."""
        if len(trainer.optimizers) != 1:
            raise PluginError(
                f"{self.name} is made for one optimizer, and the module has "
                f"{len(trainer.optimizers)}"
            )
        self._accumulated = trainer.accumulate_grad_batches
        per_epoch = self._steps_per_epoch(trainer)
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed // self._accumulated
        is_over = per_epoch is not None and done >= per_epoch  # of an epoch that a fit before ended
        total = trainer.estimated_stepping_batches
        model = self._model_in(pl_module)
        in_steps = trainer.max_steps >= 0 and total in (trainer.max_steps, math.inf)
        self.begin(
            model=model,
            optimizer=trainer.optimizers[0],
            device=pl_module.device,
            position=Position(trainer.current_epoch, 0 if is_over else done, trainer.global_step),
            writes=_writes(trainer),
            data_loader=trainer.train_dataloader,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            num_epochs=None if in_steps or trainer.max_epochs == -1 else trainer.max_epochs,
            num_steps=trainer.max_steps if in_steps else None,
            steps_per_epoch=per_epoch,
            total_steps=int(total) if total != math.inf else None,
        )
        if self._module:
            self.hear_forward(model)
        self.heard.optimizer(trainer.optimizers[0], None, self._updated)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        """Says so where the checkpoint was saved without this host."""
        if self.state_key not in checkpoint.get("callbacks", {}):
            log.warning(NOTHING_SAVED, self.name)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """An epoch begins."""
        self.begin_epoch()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch begins."""
        if trainer.accumulate_grad_batches != self._accumulated:  # from this epoch on
            self._accumulated = trainer.accumulate_grad_batches
            ctx, _ = self.running()
            ctx.steps_per_epoch = self._steps_per_epoch(trainer)
        self.begin_batch(batch, 1.0 / self._accumulated)
        if not self._module:
            self.begin_forward()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The loss is there; Lightning has divided it by the number of batches of a step."""
        _, spans = self.running()
        if spans.is_open("forward"):
            self.end_forward(loss)
        whole = loss * self._accumulated if self._accumulated > 1 else loss
        self.begin_backward({"loss": whole}, loss)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """The gradients are there."""
        self.end_backward()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """The update is about to be made."""
        self.begin_update()

    def _updated(self, *given: Any) -> None:
        """The update was made; the step ends here, while the learning rate is still its own."""
        _, spans = self.running()
        if spans.is_open("optimizer_step"):
            self.end_update()
            self.end_step()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch is behind the trainer; requests are read."""
        _, spans = self.running()
        if spans.is_open("optimizer_step"):  # a loss scaler left the update out
            self.end_step()
        self.end_batch()
        self._asked(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """An epoch ends."""
        ctx, _ = self.running()
        is_cut = trainer.should_stop or trainer.global_step == trainer.max_steps
        self.end_epoch(is_complete=not is_cut or ctx.steps_per_epoch is None)
        self._asked(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """A validation begins."""
        if self.is_running and not trainer.sanity_checking:
            self.begin_validation()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """A validation is over; its metrics are published."""
        if self.is_running and not trainer.sanity_checking:
            self.end_validation(dict(trainer.callback_metrics))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The run is over."""
        self.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The run ends with an error, which Lightning raises."""
        self.fail(exception)

    # ---- inside -------------------------------------------------------------------------------

    def call_model(self, ctx: Context) -> Any:
        """The model's outputs; a module that is called otherwise in ``training_step`` has none."""
        try:
            return super().call_model(ctx)
        except Exception as error:  # noqa: BLE001 - nobody knows what the user's module takes
            log.info("the model cannot be called with a batch alone (%s)", error)
            return {}

    def _steps_per_epoch(self, trainer: Any) -> int | None:
        batches = trainer.num_training_batches
        return None if batches == math.inf else math.ceil(batches / self._accumulated)

    def _model_in(self, pl_module: Any) -> Any:
        found = pl_module
        for part in filter(None, self._module.split(".")):
            if not hasattr(found, part):
                names = [name for name, _ in pl_module.named_modules() if name]
                raise PluginError(
                    f"{self.name}: no module {self._module!r}{did_you_mean(self._module, names)}"
                )
            found = getattr(found, part)
        return found

    def _asked(self, trainer: Any) -> None:
        if not self.is_asked:
            return

        def stop(_: str) -> None:
            trainer.should_stop = True

        def save(_: str) -> None:
            folder = Path(trainer.default_root_dir)
            trainer.save_checkpoint(folder / f"hatbus-step={trainer.global_step}.ckpt")

        self.serve({"stop run": stop, "save": save})


def _writes(trainer: Any) -> dict[str, str]:
    """What the trainer writes itself."""
    found = {}
    if trainer.gradient_clip_val:
        found["grad.clip"] = "leave Trainer(gradient_clip_val=...) out, or take the plugin off"
    if trainer.lr_scheduler_configs:
        found["optimizer.lr"] = (
            "return no lr_scheduler from configure_optimizers, or take the plugin off"
        )
    return found
