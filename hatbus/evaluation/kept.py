"""What objects hold now, to be put back after something that changes them in place."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import nn

_FILLED: Final[dict[type, Any]] = {
    dict: lambda one, old: (dict.clear(one), dict.update(one, old)),
    list: lambda one, old: list.__setitem__(one, slice(None), old),
    set: lambda one, old: (set.clear(one), set.update(one, old)),
    deque: lambda one, old: (deque.clear(one), deque.extend(one, old)),
}
"""How a container is filled with what it held; without what a subclass does beside."""


_FOREIGN: Final = {"torch", "builtins", "hatbus"}


class Kept:
    """The tensors, containers and attributes that some objects hold, all kept as they are.

    Containers are followed to any depth, and so are modules, optimizers and objects of the roots'
    own packages; others are kept as they are referred to. Everything is put back in place, so
    whoever refers to a part still does.

    Args:
        roots: the objects.
    """

    def __init__(self, roots: Iterable[object]) -> None:
        self._tensors: list[tuple[torch.Tensor, torch.Tensor, Any, bool]] = []
        self._containers: list[tuple[Any, Any, Any]] = []
        self._generators: list[tuple[torch.Generator, torch.Tensor]] = []
        self._seen: dict[int, object] = {}
        self._left: list[Any] = []
        self._packages: set[str] = set()
        for root in roots:
            self._packages.add(_package(root))
            self._left += [root, getattr(root, "__dict__", None)]
        self._packages -= _FOREIGN
        while self._left:
            one = self._left.pop()
            if id(one) not in self._seen:
                self._seen[id(one)] = one  # held, so that no other object gets its id
                self._keep(one)

    def put_back(self) -> None:
        """Makes everything as it was."""
        for container, old, fill in self._containers:
            fill(container, old)
        for generator, state in self._generators:
            generator.set_state(state)
        with torch.no_grad():
            for tensor, old, grad, wanted in self._tensors:
                _fill(tensor, old)
                if tensor.is_leaf:
                    tensor.requires_grad_(wanted)
                    tensor.grad = grad

    def _keep(self, one: Any) -> None:
        if isinstance(one, torch.Tensor):
            if one.is_meta:
                return
            grad = one.grad if one.is_leaf else None
            old = one.detach().clone()
            self._tensors.append((one, old, grad, one.requires_grad))
            self._left.append(grad)
        elif isinstance(one, torch.Generator):
            self._generators.append((one, one.get_state()))
        elif isinstance(one, tuple):
            self._left += one
        elif isinstance(one, tuple(_FILLED)):
            self._keep_container(one)
        elif isinstance(one, (nn.Module, torch.optim.Optimizer)) or _package(one) in self._packages:
            self._left.append(getattr(one, "__dict__", None))

    def _keep_container(self, one: Any) -> None:
        is_dict = isinstance(one, dict)
        old: Any = dict(one) if is_dict else list(one)
        fill = next(fill for kind, fill in _FILLED.items() if isinstance(one, kind))
        self._containers.append((one, old, fill))
        self._left += [*old, *old.values()] if is_dict else old


def _fill(tensor: torch.Tensor, old: torch.Tensor) -> None:
    try:
        tensor.copy_(old)
    except RuntimeError:  # it was resized, or its elements share memory
        tensor.data = old


def _package(one: object) -> str:
    return type(one).__module__.partition(".")[0]
