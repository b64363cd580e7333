"""``ExponentialMovingAverage``: averaged weights beside the raw ones, shown when asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hatbus import hookimpl, plugin
from hatbus.errors import CheckpointError, JobError, did_you_mean
from hatbus.loop import plain_name, structure_of
from hatbus.option_values import is_number, names, one_of, text, whole
from hatbus.parallel import refuse_sharded
from hatbus_model.folding import Fold, fold_average, folds_of
from hatbus_model.moving_average import (
    Lanes,
    Place,
    averaged_dtype,
    check_decay,
    of_observers,
    places,
    warming_up,
)
from hatbus_model.showing import shown
from hatbus_model.surgery import take_from_first_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hatbus.loop import Context

BUFFERS = ("average", "copy")


@plugin(stage="average")
class ExponentialMovingAverage:
    """Keeps ``v = d * v + (1 - d) * m`` of every parameter and floating buffer ``m``.

    ``d = decay * (1 - exp(-x / decay_base))`` at the ``x``-th committed update, from 1; a step
    whose update was skipped does not count. Integer buffers are copied, as are floats of one byte
    (float8, which a scale elsewhere gives meaning); non-persistent buffers are left alone. The
    average of a float16 or bfloat16 tensor is kept in float32.

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
        buffers: ``"average"`` floating buffers as parameters, or ``"copy"`` them; the ranges of a
            model that imitates quantisation are always copied.
        half_life: in place of ``decay``: updates after which a weight counts half.
        offload: keep the average in CPU memory.
        view: name of the weight view; two averages need two names.
        modules: names of modules beside the model that are averaged too, such as ``"loss"`` for a
            loss with weights of its own.
        warmup: ``"exponential"``, by ``decay_base``; or timm's ``"power"``, far quicker and without
            it: ``min(decay, 1 - x ** (-2 / 3))``.
        trained_only: leave out parameters that are frozen; the view shows them as they are. For
            adapters on a large model. A frozen parameter that a plugin moves is not averaged then.

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
        modules: Sequence[str] = (),
        warmup: str = "exponential",
        trained_only: bool = False,
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
        names("ema: modules", modules)
        self.offload, self.view, self.modules = offload, view, tuple(modules)
        self.warmup, self.trained_only = warmup, trained_only
        self._decay_at = warming_up("ema", warmup, self.decay, self.decay_base)
        self.updates = 0
        self._values: dict[str, Tensor] = {}
        self._followed: dict[str, Place] = {}
        self._tensors: dict[str, Tensor] = {}
        self._lanes = Lanes({}, {})
        self._structure, self._folds = -1, 0
        self._ctx: Context | None = None
        self._is_unchecked = False

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Offers the view; a resume comes after this."""
        for name in self.modules:
            if name not in ctx.modules:
                hint = did_you_mean(name, ctx.modules) or "; nothing is there"
                raise JobError(f"ema: modules: no module {name!r} beside the model{hint}")
        self._ctx = ctx
        _check_layouts(self._places(ctx))
        ctx.weights.add(self.view, self.shown)

    @hookimpl
    def on_epoch_begin(self, ctx: Context) -> None:
        """Begins with the weights that the first update starts from."""
        self._follow(ctx, look=True)

    @hookimpl
    def on_optimizer_step_begin(self, ctx: Context) -> None:
        """Follows what changed the model; what is new begins with what this update starts from."""
        self._follow(ctx)

    @hookimpl
    def on_optimizer_step_end(self, ctx: Context) -> None:
        """Moves the average, if the update was committed."""
        if not ctx.committed or ctx.exception is not None:
            return
        self._follow(ctx)
        self.updates += 1
        number = self.updates - self.start_step
        if number < 0 or number % self.interval:
            return
        with torch.no_grad():
            if not self._moved(number):
                self._follow(ctx, look=True, anew=True)
                self._moved(number)

    def _moved(self, number: int) -> bool:
        if not number:
            return self._lanes.copy()
        kept = self._decay_at(number) ** self.interval
        return self._lanes.move(1.0 - kept)

    def shown(self) -> AbstractContextManager[None]:
        """Opens the view: the model shows the average until it is closed."""
        if self._ctx is None or not self._has_begun:
            return nullcontext()
        self._follow(self._ctx, look=True)
        return shown(self._ctx.model, self._values, self._followed)

    def averages(self) -> dict[str, Tensor]:
        """The averaged tensors by their names in the model; not copies."""
        return dict(self._values)

    def state_dict(self) -> dict[str, Any]:
        """Number of updates and the averages; none before the first one of ``start_step``."""
        if self._ctx is not None and self._followed:
            self._follow(self._ctx, look=True)
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
        self._structure, self._followed, self._tensors = -1, {}, {}

    @property
    def _has_begun(self) -> bool:
        return self.updates >= self.start_step

    def _follow(self, ctx: Context, *, look: bool = False, anew: bool = False) -> None:
        """Finds the tensors to follow, at the start and after every change of structure.

        An average stays with its tensor, whatever name that has by now; a tensor that is new in
        the model begins an average of its own.

        Args:
            ctx: of the run.
            look: whether to look although no change was said.
            anew: whether what is followed is another kind of tensor now, if not another tensor.

        Raises:
            CheckpointError: the averages of a checkpoint are of another model.
        """
        if self._structure == structure_of(ctx) and not look:
            return
        if self.offload and not self._followed:
            refuse_sharded(ctx.model, "ema with offload=True", "leave it out")
        self._structure = structure_of(ctx)
        before, folded = (self._followed, self._tensors), self._folded(ctx)
        self._followed = self._places(ctx)
        self._tensors = {name: held[key] for name, (held, key) in self._followed.items()}
        if self._is_unchecked:
            _check_same(self._values, self._tensors, some=self.trained_only)
            self._is_unchecked = False
        known = names_before(*before, self._followed, folded) if before[1] else {}
        old = self._values
        self._values = {
            name: self._average_of(live, old.get(known.get(name, name)))
            for name, live in self._tensors.items()
        }
        if any(map(is_lazy, (*ctx.all_modules.parameters(), *ctx.all_modules.buffers()))):
            self._structure = -1  # their tensors are made in the first forward pass
        is_known = bool(before[0]) and is_same(old, self._values) and not (anew or folded)
        if is_known and is_in_place(before[0], self._followed):
            return
        every = [plain_name(n) for n, _ in ctx.all_modules.named_buffers()]
        copied = every if self.buffers == "copy" else of_observers(ctx.all_modules)
        self._lanes = Lanes(self._values, self._followed, copied, before=self._lanes)

    def _folded(self, ctx: Context) -> set[str]:
        """Folds averages as weights were folded since the last look; names of what was made."""
        new = folds_of(ctx)[self._folds :]
        self._folds += len(new)
        plain = [
            replace(fold, conv=plain_name(fold.conv), norm=plain_name(fold.norm)) for fold in new
        ]
        for fold in plain:
            self._take_statistics(fold, ctx)
            fold_average(self._values, fold)
        return {f"{fold.conv}.{part}".lstrip(".") for fold in plain for part in ("weight", "bias")}

    def _places(self, ctx: Context) -> dict[str, Place]:
        """Where the averaged tensors are, by name; what the model shares is the model's."""
        found = places(ctx.model)
        seen = {id(held[key]) for held, key in found.values()}
        for name in self.modules:
            for inner, (held, key) in places(ctx.modules[name]).items():
                if id(held[key]) not in seen:
                    found[f"{name}.{inner}"] = (held, key)
        return trained_places(found, {*self._values}) if self.trained_only else found

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
        if known is None or known.shape != live.shape:
            return live.detach().to(device, averaged_dtype(live), copy=True)
        return known.to(device, averaged_dtype(live))


def _check_layouts(followed: dict[str, Place]) -> None:
    for name, (held, key) in followed.items():
        if held[key].layout is not torch.strided:
            raise JobError(
                f"ema: {name!r} is {held[key].layout}, which torch cannot average; a buffer "
                "registered with persistent=False is left alone"
            )


def is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether both hold the very same tensors under the same names."""
    return one.keys() == other.keys() and all(one[name] is value for name, value in other.items())


def is_in_place(one: dict[str, Place], other: dict[str, Place]) -> bool:
    """Whether both hold the same places; the names are the same."""
    return all(one[name][0] is held and one[name][1] == key for name, (held, key) in other.items())


def names_before(
    followed: dict[str, Place], tensors: dict[str, Tensor], now: dict[str, Place], same: set[str]
) -> dict[str, str]:
    """The names under which tensors of a changed model were followed before; "" for new ones.

    A parameter is the same as long as it is the same object. A buffer may be another object after
    every forward pass, and is the same in the same module.

    Args:
        followed: where what was followed before was.
        tensors: what was followed before.
        now: where everything is now.
        same: names whose averages were changed by hand as the tensors were.
    """
    by_place = {(id(held), key): name for name, (held, key) in followed.items()}
    by_tensor = {id(tensor): name for name, tensor in tensors.items()}
    found = {}
    for name, (held, key) in now.items():
        live = held[key]
        place = None if isinstance(live, nn.Parameter) else by_place.get((id(held), key))
        found[name] = name if name in same else place or by_tensor.get(id(live), "")
    return found


def trained_places(found: dict[str, Place], known: set[str]) -> dict[str, Place]:
    """The places of buffers and of parameters that train, or of which there is an average."""

    def is_wanted(name: str, tensor: Tensor) -> bool:
        return tensor.requires_grad or not isinstance(tensor, nn.Parameter) or name in known

    return {name: (held, key) for name, (held, key) in found.items() if is_wanted(name, held[key])}


def _check_same(
    averages: dict[str, Tensor], tensors: dict[str, Tensor], *, some: bool = False
) -> None:
    """Refuses averages of another model.

    Args:
        averages: from a checkpoint.
        tensors: of the model.
        some: whether averages may lack some.

    Raises:
        CheckpointError: the first tensor that is another.
    """
    for name, value in averages.items():
        if name not in tensors:
            hint = did_you_mean(name, tensors)
            raise CheckpointError(
                f"ema: the saved average holds {name!r}, the model does not{hint}"
            )
        if value.shape != tensors[name].shape:
            shapes = f"{tuple(value.shape)}, in the model {tuple(tensors[name].shape)}"
            raise CheckpointError(f"ema: the saved average of {name!r} has shape {shapes}")
    missing = [name for name in tensors if name not in averages]
    if missing and averages and not some:
        raise CheckpointError(f"ema: the saved average lacks {missing[0]!r}; is it another model?")
