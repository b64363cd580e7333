"""What a forward pass does with pairs of a convolution and a batch norm, and whether they may fold.

A fold is right where the norm is given what the convolution gave, nothing else uses that, and
nothing else uses their weights. Order in a container does not show it; the calls do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

from hatbus.loop import eval_mode
from hatbus.rng import fenced
from hatbus_model.folding import folded_pair

if TYPE_CHECKING:
    from hatbus_model.folding import Fold

UNCALLED: Final = "it was not called with the batches at hand, so nothing shows what goes into it"
_ROUGH: Final = 1e-2
_WRITES: Final = (torch.Tensor.__setitem__, torch.Tensor.copy_)
_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")


def reasons_by_run(
    model: nn.Module, folds: Sequence[Fold], run: Callable[[], Any], *, inplace: bool
) -> dict[str, str]:
    """Why pairs may not be folded, by what one forward pass does; the model stays as it was.

    Args:
        model: the raw model; it is in eval mode meanwhile.
        folds: the pairs.
        run: runs the model forward, and gives its outputs.
        inplace: whether the convolutions' modules stay.

    Returns:
        Name of each norm that may not be folded, to the reason.
    """
    pairs = [_Pair(model, fold, stays=inplace) for fold in folds]
    try:
        with eval_mode(model), fenced(), same_buffers(model), _put_in(pairs), _eager():
            with torch.no_grad(), _Uses(pairs) as uses:
                outs = run()
            uses.see(outs, "the model returns what its convolution gives")
    except Exception as error:  # noqa: BLE001 - whatever the user's forward raises: nothing is folded
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        reason = f"a forward pass that was to show how it is called failed ({first})"
        return dict.fromkeys((fold.norm for fold in folds), reason)
    return {pair.fold.norm: reason for pair in pairs if (reason := pair.verdict())}


@contextmanager
def same_buffers(model: nn.Module) -> Iterator[None]:
    """Buffers are afterwards what they were, changed or replaced."""
    kept = [(m._buffers, n, b, b.clone()) for m in model.modules() for n, b in _buffers(m)]  # noqa: SLF001 - the dicts
    try:
        yield
    finally:
        with torch.no_grad():
            for held, name, buffer, value in kept:
                if not torch.equal(buffer, value):  # one that cannot be written to has not changed
                    buffer.copy_(value)
                held[name] = buffer


def _buffers(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return list(module.named_buffers(recurse=False, remove_duplicate=False))


class _Pair:
    """One pair in a forward pass: twins in the modules' places that note how they are called."""

    def __init__(self, model: nn.Module, fold: Fold, *, stays: bool) -> None:
        self.fold, self.reason = fold, ""
        self.conv: Any = model.get_submodule(fold.conv)
        self.norm: Any = model.get_submodule(fold.norm)
        self.twins = [(*_place(model, fold.norm), self.norm, _twin(self.norm))]
        self.gave: dict[int, tuple[Any, Any, bool]] = {}
        self.is_called, self.inside = False, 0
        seen_conv = self.conv
        if not stays:
            seen_conv = _twin(self.conv)
            self.twins.append((*_place(model, fold.conv), self.conv, seen_conv))
        self.watched = [(seen_conv, self.after_conv), (self.twins[0][3], self.after_norm)]
        self.weights = {id(t) for m in (self.conv, self.norm) for t in _tensors(m)}

    def blame(self, reason: str) -> None:
        self.reason = self.reason or reason

    def enter(self, *_: Any) -> None:
        self.inside += 1

    def after_conv(self, _: Any, given: tuple[Any, ...], gave: Any) -> None:
        self.is_called = True
        self.gave[id(gave)] = (given, gave, False)
        self.inside -= 1

    def after_norm(self, _: Any, given: tuple[Any, ...], gave: Any) -> None:
        self.is_called = True
        found = self.gave.get(id(given[0])) if given else None
        if found is None or found[1] is not given[0]:
            self.blame("what goes into it is not what its convolution gives")
        else:
            self.gave[id(given[0])] = (*found[:2], True)
            if not self.reason and not self.agrees(found[0]):
                self.blame("the folded convolution gives something else")
        self.inside -= 1

    def agrees(self, given: tuple[Any, ...]) -> bool:
        """Whether convolution and norm give what the folded convolution will, for one input."""
        conv, norm = self.conv, self.norm
        weight, bias = folded_pair(conv, norm, self.fold)
        one = _twin(conv)
        one.__dict__["_parameters"] = {"weight": nn.Parameter(weight), "bias": nn.Parameter(bias)}
        rest = [t.to(weight.dtype) if isinstance(t, torch.Tensor) else t for t in given]
        with torch.autocast(weight.device.type, enabled=False):
            expected, found = norm.forward(conv.forward(*rest)), one.forward(*rest)
        rough = max(_ROUGH, torch.finfo(weight.dtype).eps ** 0.5)
        gap = (expected - found).abs().max()
        return bool(gap <= rough * expected.abs().max())

    def verdict(self) -> str:
        if not self.is_called and not self.reason:
            return UNCALLED
        if not all(is_used for _, _, is_used in self.gave.values()):
            self.blame("not all that its convolution gives goes into it")
        return self.reason


def _twin(module: Any) -> Any:
    """The same module, tensors and all, as another object and without hooks."""
    twin = copy.copy(module)
    twin.__dict__.update({name: type(getattr(module, name))() for name in _HOOKS})
    return twin


def _place(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    parent, _, key = name.rpartition(".")
    return model.get_submodule(parent)._modules, key  # noqa: SLF001 - an assignment would be noticed


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


@contextmanager
def _put_in(pairs: Sequence[_Pair]) -> Iterator[None]:
    """Puts the twins in their places; a module that is called all the same is held elsewhere."""
    handles: list[Any] = []
    try:
        for pair in pairs:
            for held, key, module, twin in pair.twins:
                held[key] = twin
                text = "it or its convolution is held elsewhere too, outside the modules"
                handles.append(module.register_forward_pre_hook(_blaming(pair, text)))
            for module, after in pair.watched:
                handles.append(module.register_forward_pre_hook(pair.enter))
                handles.append(module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for pair in pairs:
            for held, key, module, _ in pair.twins:
                held[key] = module


def _blaming(pair: _Pair, reason: str) -> Callable[..., None]:
    def blame(*_: Any) -> None:
        pair.blame(reason)

    return blame


@contextmanager
def _eager() -> Iterator[None]:
    """Compiled parts run as they are written."""
    with torch.compiler.set_stance("force_eager"):
        yield


class _Uses(TorchFunctionMode):
    """Sees every function of torch that is called, and blames pairs whose tensors it is given."""

    def __init__(self, pairs: Sequence[_Pair]) -> None:
        super().__init__()
        self._pairs = pairs

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        makes = any(isinstance(one, torch.Tensor) for one in tree_iter(result))
        if makes or func in _WRITES:  # a size or a dtype is no use of it
            name = getattr(func, "__name__", str(func))
            self.see((args, kwargs), f"what its convolution gives goes into {name!r} too")
        return result

    def see(self, values: Any, reason: str) -> None:
        """Blames the pairs whose outputs or weights are among the values, used outside of them."""
        found = {id(one): one for one in tree_iter(values) if isinstance(one, torch.Tensor)}
        for pair in self._pairs:
            if pair.inside:
                continue
            if any(pair.gave[key][1] is found[key] for key in found.keys() & pair.gave.keys()):
                pair.blame(reason)
            if found.keys() & pair.weights:
                pair.blame("its tensors, or its convolution's, are used elsewhere too")
