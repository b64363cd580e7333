"""``ExponentialMovingAverage``: averaged weights beside the raw ones, shown when asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from hatbus import hookimpl, plugin
from hatbus.errors import CheckpointError, JobError, did_you_mean
from hatbus.loop import plain_name, structure_of
from hatbus.option_values import is_number, one_of, text, whole
from hatbus.parallel import refuse_sharded
from hatbus_model.folding import Fold, fold_average, folds_of
from hatbus_model.moving_average import (
    Lane,
    Place,
    averaged_dtype,
    check_decay,
    decay_at,
    lanes,
    places,
)
from hatbus_model.showing import shown
from hatbus_model.surgery import take_from_first_rank
from hatbus_model.watching import Watch

if TYPE_CHECKING:
    from torch import Tensor

    from hatbus.loop import Context

BUFFERS = ("average", "copy")


@plugin(stage="average")
class ExponentialMovingAverage:
    """Keeps ``v = d * v + (1 - d) * m`` of every parameter and floating buffer ``m``.

    ``d = decay * (1 - exp(-x / decay_base))`` at the ``x``-th committed update, from 1; a step
    whose update was skipped does not count. Integer buffers are copied, non-persistent ones left
    alone. The average of a float16 or bfloat16 tensor is kept in float32.

    Training and checkpoints see the raw weights, always. The average is the weight view ``view``
    (``with ctx.weights.showing("ema"):``), which validation and export enter; it is saved as this
    plugin's state and continues exactly. Source: ``hat.callbacks.ExponentialMovingAverage``.

    Args:
        decay: what the decay tends to.
        decay_base: updates over which it warms up; 0: none, ``decay`` from the start.
        start_step: committed updates after which the average begins, as a copy of the weights;
            the view shows the raw weights until then.
        interval: move at every n-th committed update only, by ``d ** n``, which keeps the time
            over which is averaged.
        buffers: ``"average"`` floating buffers as parameters, or ``"copy"`` them.
        half_life: in place of ``decay``: updates after which a weight counts half.
        offload: keep the average in CPU memory.
        view: name of the weight view; two averages need two names.

    Raises:
        JobError: a value that cannot be used.
    """

    def __init__(
        self,
        decay: float | None = 0.9999,
        decay_base: float | None = 2000,
        start_step: int = 0,
        interval: int = 1,
        buffers: str = "average",
        half_life: float | None = None,
        offload: bool = False,
        view: str = "ema",
    ) -> None:
        if half_life is not None and not (is_number(half_life) and half_life > 0):
            raise JobError(f"ema: half_life is {half_life!r}; accepted: updates > 0, or none")
        wanted = decay if half_life is None else 0.5 ** (1.0 / half_life)
        self.decay, self.decay_base = check_decay("ema", wanted, decay_base)
        whole("ema: interval", interval, 1)
        whole("ema: start_step", start_step, 0)
        one_of("ema: buffers", buffers, BUFFERS)
        text("ema: view", view)
        self.start_step, self.interval, self.buffers = start_step, interval, buffers
        self.offload, self.view = offload, view
        self.updates = 0
        self._values: dict[str, Tensor] = {}
        self._followed: dict[str, Place] = {}
        self._lanes: list[Lane] = []
        self._structure, self._folds = -1, 0
        self._ctx: Context | None = None
        self._watch: Watch | None = None
        self._is_unchecked = False

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Offers the view; a resume comes after this."""
        self._ctx = ctx
        _check_layouts(places(ctx.model))
        ctx.weights.add(self.view, self.shown)

    @hookimpl
    def on_epoch_begin(self, ctx: Context) -> None:
        """Begins with the weights that the first update starts from."""
        self._follow(ctx)

    @hookimpl
    def on_step_begin(self, ctx: Context) -> None:
        """Follows what changed the model, also in a step that will make no update."""
        self._follow(ctx)

    @hookimpl
    def on_optimizer_step_begin(self, ctx: Context) -> None:
        """Follows tensors that took another shape in the forward; their average begins anew."""
        if self._watch is not None and self._watch.has_changed():
            self._structure = -1
            self._follow(ctx)

    @hookimpl
    def on_optimizer_step_end(self, ctx: Context) -> None:
        """Moves the average, if the update was committed."""
        if not ctx.committed or ctx.exception is not None:
            return
        self._follow(ctx)
        self.updates += 1
        number = self.updates - self.start_step
        with torch.no_grad():
            if number == 0:
                for lane in self._lanes:
                    lane.copy()
            elif number > 0 and number % self.interval == 0:
                kept = decay_at(number, self.decay, self.decay_base) ** self.interval
                for lane in self._lanes:
                    lane.move(1.0 - kept)

    def shown(self) -> AbstractContextManager[None]:
        """Opens the view: the model shows the average until it is closed."""
        if self._ctx is None or not self._has_begun:
            return nullcontext()
        self._follow(self._ctx)
        return shown(self._ctx.model, self._values, self._followed)

    def averages(self) -> dict[str, Tensor]:
        """The averaged tensors by their names in the model; not copies."""
        return dict(self._values)

    def state_dict(self) -> dict[str, Any]:
        """Number of updates and the averages; none before the first one of ``start_step``."""
        averages = dict(self._values) if self._has_begun else {}
        return {"updates": self.updates, "averages": averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the averages; changes of the model's structure were replayed before.

        Whether they are this model's is known when its tensors have their shapes of the save.
        """
        self.updates = int(state["updates"])
        self._values = {plain_name(n): value.clone() for n, value in state["averages"].items()}
        if self._ctx is not None:
            self._is_unchecked = True
            self._folds = len(folds_of(self._ctx))
            self._structure = -1

    @property
    def _has_begun(self) -> bool:
        return self.updates >= self.start_step

    def _follow(self, ctx: Context) -> None:
        """Finds the tensors to follow, at the start and after every change of structure.

        Raises:
            CheckpointError: the averages of a checkpoint are of another model.
        """
        if self._structure == structure_of(ctx):
            return
        self._structure = structure_of(ctx)
        if self.offload:
            refuse_sharded(ctx.model, "ema with offload=True", "leave it out")
        folds = folds_of(ctx)
        for fold in folds[self._folds :]:
            self._take_statistics(fold, ctx)
            fold_average(self._values, fold)
        self._folds = len(folds)
        self._followed = places(ctx.model)
        if self._is_unchecked:
            _check_same(self._values, self._followed)
            self._is_unchecked = False
        self._values = {
            name: self._average_of(held[key], self._values.get(name))
            for name, (held, key) in self._followed.items()
        }
        copied = [n for n, _ in ctx.model.named_buffers()] if self.buffers == "copy" else ()
        self._lanes = lanes(self._values, self._followed, copied)
        self._watch = Watch(ctx.model)

    def _take_statistics(self, fold: Fold, ctx: Context) -> None:
        """Gives every rank rank 0's averaged statistics, which are about to become weights."""
        for name in (f"{fold.norm}.running_mean", f"{fold.norm}.running_var"):
            if ctx.world_size > 1 and name in self._values:
                value = self._values[name].to(ctx.device)
                take_from_first_rank([value])
                self._values[name] = value.to(self._values[name].device)

    def _average_of(self, live: Tensor, known: Tensor | None) -> Tensor:
        """The average of a tensor where it belongs; a copy of the tensor if there is none yet."""
        device = torch.device("cpu") if self.offload else live.device
        value = known if known is not None and known.shape == live.shape else live
        return value.detach().to(device, averaged_dtype(live), copy=value is live)


def _check_layouts(followed: dict[str, Place]) -> None:
    for name, (held, key) in followed.items():
        if held[key].layout is not torch.strided:
            raise JobError(
                f"ema: {name!r} is {held[key].layout}, which torch cannot average; a buffer "
                "registered with persistent=False is left alone"
            )


def _check_same(averages: dict[str, Tensor], followed: dict[str, Place]) -> None:
    model = {name: tuple(held[key].shape) for name, (held, key) in followed.items()}
    for name, value in averages.items():
        if name not in model:
            hint = did_you_mean(name, model)
            raise CheckpointError(
                f"ema: the saved average holds {name!r}, the model does not{hint}"
            )
        if tuple(value.shape) != model[name]:
            shapes = f"{tuple(value.shape)}, in the model {model[name]}"
            raise CheckpointError(f"ema: the saved average of {name!r} has shape {shapes}")
    missing = [name for name in model if name not in averages]
    if missing and averages:
        raise CheckpointError(f"ema: the saved average lacks {missing[0]!r}; is it another model?")
