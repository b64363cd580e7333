"""Train and eval mode: parts that are in eval mode when a fit begins stay in it.

``model.train()`` alone would put them back: a frozen feature extractor would then drop out units
and move its running statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hatbus.log import log

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

_SHOWN: Final = 5


def eval_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Everything in eval mode, and afterwards every module in the mode that it had.

    For a plugin that evaluates the model itself: ``model.train()`` after it would also put those
    parts to train mode that a user, or ``freeze_module``, keeps in eval mode.
    """
    return _EvalMode(model)


class _EvalMode:
    """The context of ``eval_mode``; no generator, as a validation enters it on every occasion."""

    __slots__ = ("_model", "_modes")

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        parts = parts_of(self._model)
        self._modes = [(module, module.training) for module in parts]
        set_mode(parts, is_training=False)

    def __exit__(self, *error: object) -> None:
        # for a train() of the user's own; the exact modes come after it
        set_mode(parts_of(self._model), is_training=self._modes[0][1])
        for module, mode in self._modes:
            if module.training is not mode:  # setting it takes torch a while
                module.training = mode


def parts_of(model: nn.Module) -> list[nn.Module]:
    """What ``model.modules()`` gives, in another order and in a third of the time."""
    found = {id(model): model}
    waiting = [model]
    for module in waiting:
        for child in module._modules.values():  # noqa: SLF001 - torch's own ways take three times as long
            if child is not None and id(child) not in found:
                found[id(child)] = child
                waiting.append(child)
    return waiting


def set_mode(parts: list[nn.Module], *, is_training: bool) -> None:
    """``model.train(is_training)``, without its calls where no part has its own way of doing that.

    torch takes 2 us for every part, as it looks whether the mode is a parameter or a module.

    Args:
        parts: from ``parts_of(model)``.
        is_training: train mode, or eval mode.
    """
    held = []
    for part in parts:
        own, kind = vars(part), type(part)
        is_plain = kind.train is nn.Module.train and kind.eval is nn.Module.eval
        is_plain = is_plain and kind.__setattr__ is nn.Module.__setattr__
        if not is_plain or "training" not in own or "train" in own or "eval" in own:
            parts[0].train(is_training)
            return
        held.append(own)
    for own in held:
        own["training"] = is_training


class TrainModes:
    """The modes of a model's parts in the fits of one trainer."""

    def __init__(self) -> None:
        self._in_eval: WeakSet[nn.Module] = WeakSet()

    def enter(self, model: nn.Module) -> list[str]:
        """Puts the model to train mode for a fit, all but the parts that are in eval mode.

        A model that is in eval mode as a whole (as it comes from an evaluation, or from a hub) goes
        back to the modes at the end of the last fit; before the first one that is train mode.
        A ``train()`` of a module's own is called, and what it leaves in eval mode stays so.

        Returns:
            The names of the topmost parts that were in eval mode and stay so.
        """
        modules = list(model.modules())
        kept = [module for module in modules if not module.training]
        if len(kept) == len(modules):
            kept = [module for module in kept if module in self._in_eval]
        model.train()
        for module in kept:
            module.training = False
        return _topmost(model, {id(module) for module in kept})

    def leave(self, model: nn.Module) -> None:
        """Remembers the modes at the end of a fit."""
        self._in_eval = WeakSet(m for m in model.modules() if not m.training)


def tell_of_eval(model: nn.Module, names: list[str]) -> None:
    """Says which parts train in eval mode; loudly where that may not be meant.

    Args:
        model: the model.
        names: of the parts that are in eval mode.
    """
    for names_of_kind, is_odd in _by_kind(model, names):
        listed = ", ".join(repr(n) if n else "the model itself" for n in names_of_kind[:_SHOWN])
        more = f" and {len(names_of_kind) - _SHOWN} more" if len(names_of_kind) > _SHOWN else ""
        if is_odd:
            log.warning(
                "%s%s: in eval mode before the run, and so in training (no dropout, batch norms "
                "use their running statistics), though parameters there train; call train() on it "
                "before fit if that is not meant",
                listed,
                more,
            )
        else:
            log.info("%s%s: in eval mode before the run, and so in training", listed, more)


def _by_kind(model: nn.Module, names: list[str]) -> list[tuple[list[str], bool]]:
    odd = [name for name in names if _trains(model.get_submodule(name))]
    plain = [name for name in names if name not in odd]
    return [(found, is_odd) for found, is_odd in ((odd, True), (plain, False)) if found]


def _trains(module: nn.Module) -> bool:
    """Whether something in eval mode has weights that train, other than those of batch norms."""
    return any(
        parameter.requires_grad
        for part in module.modules()
        if not part.training and not isinstance(part, _BatchNorm)
        for parameter in part.parameters(recurse=False)
    )


def _topmost(model: nn.Module, kept: set[int]) -> list[str]:
    """Names of the kept modules that lie in no other one."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if id(module) in kept and not inside:
            found.append(name)
    return found
