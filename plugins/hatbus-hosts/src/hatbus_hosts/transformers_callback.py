"""``TransformersCallback``: a callback of Transformers as a plugin of hatbus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus import hookimpl, plugin
from hatbus.errors import JobError, PluginError
from hatbus_hosts.adapting import adapted
from hatbus_hosts.versions import check_version

if TYPE_CHECKING:
    from hatbus import Context

_PLAIN: Final = (int, float, str, bool, type(None))
_PREFIX: Final = "val/"
_WHY: Final = "a callback of Transformers"


@plugin(stage="report")
class TransformersCallback:
    """Runs a callback of Transformers' ``Trainer``: its events, its flags, its state.

    A stop, save or evaluation that it asks for becomes a request. Numbers of a validation are given
    to it as ``eval_<name>``. When it asks for a log, the mean loss since the last one is published
    as ``loss``, with ``learning_rate``. In a job the callback may also be named itself:
    ``use = "transformers:EarlyStoppingCallback"``.

    Args:
        callback: the ``TrainerCallback``.
        training_arguments: ``TrainingArguments``, or some of them as a mapping; what the callback
            reads there, such as ``logging_steps`` or ``metric_for_best_model``.

    Raises:
        PluginError: it is no such callback.
        JobError: arguments that Transformers does not take.
    """

    def __init__(
        self, callback: Any, training_arguments: Mapping[str, Any] | Any | None = None
    ) -> None:
        check_version("transformers")
        from transformers import TrainerCallback
        from transformers.trainer_callback import TrainerControl, TrainerState

        if not isinstance(callback, TrainerCallback):
            raise PluginError(
                f"transformers_callback: {callback!r:.80} is no TrainerCallback of Transformers"
            )
        self.callback = callback
        self.state, self.control = TrainerState(), TrainerControl()
        self.args: Any = None
        self._given = {} if training_arguments is None else training_arguments
        self._check_arguments()
        self._loss: torch.Tensor | None = None
        self._batches = self._logged_at = 0

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Tells the callback that training begins; states were given back before."""
        self.args = self._arguments(ctx)
        state = self.state
        state.max_steps = ctx.total_steps or 0
        state.num_train_epochs = ctx.num_epochs or 0
        state.is_local_process_zero = state.is_world_process_zero = ctx.rank == 0
        state.compute_steps(self.args, state.max_steps)
        self._logged_at = ctx.position.global_step
        self._place(ctx, ctx.position.global_step)
        self._call(ctx, "on_init_end")
        self.control.should_training_stop = False
        self._call(ctx, "on_train_begin")

    @hookimpl
    def on_epoch_begin(self, ctx: Context) -> None:
        """Passes it on."""
        self.control.should_epoch_stop = False
        self._place(ctx, ctx.position.global_step)
        self._call(ctx, "on_epoch_begin")

    @hookimpl
    def on_step_begin(self, ctx: Context) -> None:
        """Passes it on; flags of the step before are gone."""
        control = self.control
        control.should_log = control.should_evaluate = control.should_save = False
        self._batches = 0
        self._call(ctx, "on_step_begin")

    @hookimpl
    def on_batch_end(self, ctx: Context) -> None:
        """Passes on the end of a batch that is not the last of its step."""
        self._batches += 1
        if self._batches < len(ctx.batches) and ctx.exception is None:
            self._call(ctx, "on_substep_end")

    @hookimpl
    def on_optimizer_step_begin(self, ctx: Context) -> None:
        """Passes it on."""
        self._call(ctx, "on_pre_optimizer_step")

    @hookimpl
    def on_optimizer_step_end(self, ctx: Context) -> None:
        """Passes it on."""
        if ctx.exception is None:
            self._call(ctx, "on_optimizer_step")

    @hookimpl
    def on_step_end(self, ctx: Context, losses: Mapping[str, torch.Tensor]) -> None:
        """Passes it on, with the step counted, as Transformers does."""
        if ctx.exception is not None:
            return
        total = sum((loss.detach() for loss in losses.values()), torch.zeros((), device=ctx.device))
        self._loss = total if self._loss is None else self._loss + total
        self._place(ctx, ctx.position.global_step)
        self._call(ctx, "on_step_end")
        self._log_if_asked(ctx)

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        """Passes it on."""
        if ctx.exception is None:
            self._place(ctx, ctx.position.global_step)
            self._call(ctx, "on_epoch_end")
            self._log_if_asked(ctx)

    @hookimpl
    def on_validation_end(self, ctx: Context) -> None:
        """Gives it what was found; then the best value is noted, as Transformers does."""
        if ctx.exception is not None:
            return
        found = {
            f"eval_{name.removeprefix(_PREFIX)}": float(value)
            for name, value in ctx.latest.items()
            if name.startswith(_PREFIX) and _is_number(value)
        }
        self.control.should_evaluate = False
        self._call(ctx, "on_evaluate", metrics=found)
        self._note_best(found)

    @hookimpl
    def on_log(self, ctx: Context, logs: Mapping[str, Any], kind: str) -> None:
        """Passes on published numbers."""
        if kind != "scalar" or self.args is None:
            return
        numbers = {name: float(value) for name, value in logs.items() if _is_number(value)}
        self.control.should_log = False
        self.state.log_history.append({**numbers, "step": self.state.global_step})
        self._call(ctx, "on_log", logs=numbers)

    @hookimpl
    def on_checkpoint_saved(self, ctx: Context) -> None:
        """Passes it on."""
        self.control.should_save = False
        self._call(ctx, "on_save")

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Passes it on, unless an error ended the run: then Transformers says nothing either."""
        if ctx.exception is None and self.args is not None:
            self._call(ctx, "on_train_end")
        self.args = None

    def state_dict(self) -> dict[str, Any]:
        """What the callback exports, and what Transformers knows of the run."""
        state = {n: v for n, v in vars(self.state).items() if isinstance(v, _PLAIN)}
        export = getattr(self.callback, "state", None)
        own = dict(export()["attributes"]) if callable(export) else {}
        return {"state": state, "log_history": list(self.state.log_history), "callback": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes it back."""
        for name, value in state["state"].items():
            setattr(self.state, name, value)
        self.state.log_history = list(state["log_history"])
        for name, value in state["callback"].items():
            setattr(self.callback, name, value)

    # ---- inside -------------------------------------------------------------------------------

    def _check_arguments(self) -> None:
        if not isinstance(self._given, Mapping):
            return
        import dataclasses

        from transformers import TrainingArguments

        from hatbus.errors import did_you_mean

        known = {field.name for field in dataclasses.fields(TrainingArguments)}
        for name in self._given:
            if name not in known:
                raise JobError(
                    f"transformers_callback: training_arguments: unknown argument {name!r}"
                    f"{did_you_mean(name, known)}"
                )

    def _arguments(self, ctx: Context) -> Any:
        if not isinstance(self._given, Mapping):
            return self._given
        from transformers import TrainingArguments

        usual = {
            "output_dir": str(ctx.run_dir or "."),
            "report_to": [],
            "use_cpu": str(ctx.device) == "cpu",
            "logging_strategy": "no",
            "save_strategy": "no",
            "num_train_epochs": ctx.num_epochs or 1,
            "max_steps": ctx.num_steps or -1,
        }
        return TrainingArguments(**{**usual, **self._given})

    def _place(self, ctx: Context, step: int) -> None:
        position, per_epoch = ctx.position, ctx.steps_per_epoch
        self.state.global_step = step
        self.state.epoch = position.epoch + (position.step / per_epoch if per_epoch else 0)

    def _call(self, ctx: Context, event: str, **more: Any) -> None:
        found = getattr(self.callback, event)(
            self.args,
            self.state,
            self.control,
            model=ctx.model,
            processing_class=None,
            optimizer=ctx.optimizer,
            lr_scheduler=None,
            train_dataloader=ctx.data_loader,
            eval_dataloader=None,
            **more,
        )
        self.control = self.control if found is None else found
        self._ask(ctx)

    def _ask(self, ctx: Context) -> None:
        """Makes requests of the flags."""
        control = self.control
        is_last = ctx.total_steps is not None and ctx.position.global_step >= ctx.total_steps
        if control.should_training_stop and not is_last:
            ctx.control.stop("run", _WHY)
        if control.should_epoch_stop:
            ctx.control.stop("epoch", _WHY)
        if control.should_save:
            ctx.control.save(_WHY)
        if control.should_evaluate:
            ctx.control.validate(_WHY)
        control.should_training_stop = control.should_epoch_stop = False
        control.should_save = control.should_evaluate = False

    def _log_if_asked(self, ctx: Context) -> None:
        steps = self.state.global_step - self._logged_at
        if not self.control.should_log or self._loss is None or not steps:
            return
        values = {"loss": self._loss.item() / steps}
        if ctx.optimizer is not None:
            values["learning_rate"] = float(ctx.optimizer.param_groups[0]["lr"])
        self._loss, self._logged_at = None, self.state.global_step
        ctx.log(values)

    def _note_best(self, metrics: Mapping[str, float]) -> None:
        name = self.args.metric_for_best_model
        if name is None:
            return
        value = metrics.get(name if name.startswith("eval_") else f"eval_{name}")
        best, greater = self.state.best_metric, self.args.greater_is_better
        if value is not None and (best is None or (value > best if greater else value < best)):
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step


def plugin_class(cls: type[Any]) -> type[Any]:
    """The plugin class of a class of callbacks, for a job that names it."""
    return adapted(TransformersCallback, cls, "training_arguments")


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float))
