"""``TransformersHost``: plugins in the ``Trainer`` of Transformers."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hatbus.errors import CheckpointError, PluginError
from hatbus.log import log
from hatbus.loop import Position
from hatbus_hosts.capabilities import TRANSFORMERS
from hatbus_hosts.host import Host
from hatbus_hosts.states import NOTHING_SAVED
from hatbus_hosts.versions import check_version
from hatbus_hosts.work import may_skip_update, named_losses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hatbus import Bus
    from hatbus_hosts.needs import Capabilities

FILE = "hatbus.pt"
"""The plugins' states in a checkpoint's folder."""
_NO_LOSS = (
    "%s: the model returns no loss, so plugins hear of none; the trainer computes it itself "
    "(label_smoothing_factor, compute_loss_func, or a compute_loss of its own)"
)
_living: WeakSet[TransformersHost] = WeakSet()


class TransformersHost(TrainerCallback, ExportableState, Host):  # type: ignore[misc]  # typed as Any
    """Plugins in Transformers' ``Trainer``: ``Trainer(callbacks=[TransformersHost(plugins)])``.

    What plugins keep is in the file ``hatbus.pt`` of each ``checkpoint-<step>``, and is given back
    by ``trainer.train(resume_from_checkpoint=...)``.

    Args:
        plugins: as for ``Host``.
        logs: whether the trainer's own logs are published to the plugins.
        states: path of a ``hatbus.pt`` to resume with, where the checkpoint was moved.
        options: of ``Host``.

    Raises:
        PluginError: a plugin that cannot be used here.
    """

    name: ClassVar[str] = "TransformersHost"
    capabilities: ClassVar[Capabilities] = TRANSFORMERS

    def __init__(
        self,
        plugins: Sequence[object] | Mapping[str, object] | Bus | None = None,
        *,
        logs: bool = True,
        states: str | Path | None = None,
        adopt: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        if adopt is not None:  # the trainer makes callbacks anew when it restores them
            self._adopt(tuple(adopt))
            return
        check_version("transformers")
        Host.__init__(self, plugins if plugins is not None else (), **options)
        self._logs = logs
        self._given = None if states is None else Path(states)
        self._folder: Path | None = None
        self._accumulated, self._may_skip = 1, True
        self._is_told = False
        self._token = ""
        _living.add(self)

    def _adopt(self, names: tuple[str, ...]) -> None:
        same = [one for one in _living if (*one.bus.members,) == names]
        if len(same) != 1:
            raise PluginError(
                "restore_callback_states_from_checkpoint makes callbacks anew, which cannot be "
                "done of plugins; leave it out: TransformersHost restores what it saved without it"
            )
        self.__dict__ = same[0].__dict__

    # ---- what the trainer says ----------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """The run begins."""
        optimizer, model = more["optimizer"], more["model"]
        raw = getattr(optimizer, "optimizer", optimizer)
        self._folder = _folder(args, state)
        self._take(args, state)
        loader = more.get("train_dataloader")
        per_epoch = _steps_per_epoch(args, loader)
        step = state.global_step
        place = Position(step // per_epoch, step % per_epoch, step) if per_epoch else Position()
        self._check_place(self._resume.place(place)[0].global_step, step)
        self._accumulated = args.gradient_accumulation_steps
        self._may_skip = may_skip_update(optimizer)
        whole = None if per_epoch is None else per_epoch * state.num_train_epochs
        in_epochs = args.max_steps <= 0 and whole in (None, state.max_steps)
        self.begin(
            model=model,
            optimizer=raw,
            position=place,
            writes=_writes(args),
            data_loader=loader,
            num_epochs=state.num_train_epochs if in_epochs else None,
            num_steps=None if in_epochs else state.max_steps,
            steps_per_epoch=per_epoch,
            total_steps=state.max_steps,
        )
        self.heard.model(model, self._called, self._returned)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """An epoch begins."""
        self.begin_epoch()

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """A step begins."""
        self.begin_step()

    def on_substep_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """A batch that is not the last of its step ends."""
        self.end_batch()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """The update is about to be made."""
        self.begin_update()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """The update was made; the step ends here, while the learning rate is still its own."""
        skipped = self._may_skip and getattr(more.get("optimizer"), "step_was_skipped", False)
        self.end_update(committed=not skipped)
        self.end_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        """Requests are read."""
        ctx, _, _ = self._run or self._unprepared()
        if ctx.control.pending or ctx.control.is_shared:
            self._asked(control)
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        """An epoch ends."""
        ctx, _ = self.running()
        at_end = ctx.steps_per_epoch is None or ctx.position.step >= ctx.steps_per_epoch
        stopped_epoch = control.should_epoch_stop and not control.should_training_stop
        self.end_epoch(is_complete=at_end or stopped_epoch)
        return self._asked(control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """A batch is evaluated."""
        if self.is_running:
            self.begin_validation()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **more: Any
    ) -> Any:
        """An evaluation is over."""
        if not self.is_running:
            return control
        self.end_validation(_numbers(metrics or {}))
        return self._asked(control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        """The trainer's own numbers are published; those of an evaluation were before."""
        if self._logs and self.is_running and self.ctx is not None:
            found = {n: v for n, v in (logs or {}).items() if not n.startswith("eval_")}
            if found:
                self.ctx.log(_numbers(found))

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """A checkpoint was saved."""
        self.checkpoint_saved(_folder(args, state) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """The run is over."""
        self.end()

    # ---- its checkpoints ----------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Where the plugins' states are; called by the trainer inside a save, which writes them."""
        if self.is_running and self.ctx is not None and self._folder is not None:
            self._token = uuid.uuid4().hex
            folder = self._folder / f"checkpoint-{self.ctx.position.global_step}"
            _write({"token": self._token, **self.state_dict()}, folder / FILE)
        names = list(self.bus.members)
        return {"args": {"adopt": names}, "attributes": {"_token": self._token}}

    def _take(self, args: Any, state: Any) -> None:
        """Reads the states of the checkpoint that the trainer resumed from."""
        entry = (state.stateful_callbacks or {}).get(type(self).__name__)
        entry = entry[0] if isinstance(entry, list) and entry else entry
        token = entry["attributes"].get("_token", "") if state.global_step and entry else ""
        if not token:
            if state.global_step:
                log.warning(NOTHING_SAVED, self.name)
            return
        own = _folder(args, state) / f"checkpoint-{state.global_step}" / FILE
        resumed = args.resume_from_checkpoint
        places = [self._given] if self._given else [own]
        if isinstance(resumed, str):
            places.insert(0, Path(resumed) / FILE)
        for place in places:
            if place.is_file():
                found = torch.load(place, map_location="cpu", weights_only=True)
                if found.pop("token") == token:
                    self.load_state_dict(found)
                    return
        looked = ", ".join(map(str, places))
        raise CheckpointError(
            f"the plugins' states of step {state.global_step} are not here (looked for {looked}); "
            f"give TransformersHost states='.../checkpoint-{state.global_step}/{FILE}'"
        )

    def _check_place(self, own: int, theirs: int) -> None:
        if own != theirs:
            raise CheckpointError(
                f"the plugins' states are of step {own}, the trainer goes on from step {theirs}; "
                "resume from a checkpoint that was saved with these plugins"
            )

    # ---- inside -------------------------------------------------------------------------------

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """The model is called: in a step, with the next batch of it."""
        if self._run is None:
            return False
        _, _, opened = self._run
        if "run_step" not in opened or "validate" in opened:
            return False
        if "run_batch" not in opened:
            batch = kwargs or (args[0] if len(args) == 1 else args)
            is_scaled = kwargs.get("num_items_in_batch") is not None  # by the model
            self.begin_batch(batch, 1.0 if is_scaled else 1.0 / self._accumulated)
        return True

    def _returned(self, outputs: Any) -> Any:
        """The forward pass is over; its outputs hold the loss."""
        ctx, _, _ = self._run or self._unprepared()
        found = self.end_forward(outputs)
        losses = ctx.losses = named_losses(found)
        if not losses and not self._is_told:
            self._is_told = True
            log.warning(_NO_LOSS, self.name)
        return found

    def _asked(self, control: Any) -> Any:
        if not self.is_asked:
            return control

        def flag(name: str) -> Any:
            return lambda _: setattr(control, name, True)

        self.serve(
            {
                "validate": flag("should_evaluate"),
                "stop epoch": flag("should_epoch_stop"),
                "stop run": flag("should_training_stop"),
                "save": flag("should_save"),
            }
        )
        return control


def _folder(args: Any, state: Any) -> Path:
    """Where the trainer's checkpoints are; a trial of a search has a folder of its own."""
    return Path(args.output_dir, state.trial_name or "")


def _steps_per_epoch(args: Any, loader: Any) -> int | None:
    try:
        length = len(loader)
    except TypeError:
        return None
    accumulated: int = args.gradient_accumulation_steps
    return max(-(-length // accumulated), 1)


def _writes(args: Any) -> dict[str, str]:
    """What the trainer writes itself."""
    found = {}
    if args.max_grad_norm and args.max_grad_norm > 0:
        found["grad.clip"] = "give TrainingArguments(max_grad_norm=0), or take the plugin off"
    if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) != "constant":
        found["optimizer.lr"] = (
            "give TrainingArguments(lr_scheduler_type='constant'), or take the plugin off"
        )
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (int, float, torch.Tensor)
    return {name: value for name, value in values.items() if isinstance(value, kinds)}


def _write(state: dict[str, Any], path: Path) -> None:
    """Writes a file, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
