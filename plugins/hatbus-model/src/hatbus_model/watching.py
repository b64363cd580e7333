"""Whether a model's tensors have come to another shape: buffers that grow, lazy modules."""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any

from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from torch import nn


class Watch:
    """Looks at a model's buffers, which a forward may replace, and at lazy parameters.

    A look costs some 30 ns per buffer while none was replaced.

    Args:
        model: the raw model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._held: list[dict[str, Any]] = []
        self._now: list[Any] = []
        self._kinds: list[object] = []
        self._find()
        self._looks_anew = True

    def has_changed(self) -> bool:
        """Whether a tensor came, went or took another shape or type since the last look."""
        if self._looks_anew:  # the first forward may have registered some
            was = self._kinds
            self._find()
            return was != self._kinds
        now = self._buffers()
        if len(now) == len(self._now) and all(map(is_, now, self._now)):
            return False
        was, self._now, self._kinds = self._kinds, now, [_kind(one) for one in now]
        return was != self._kinds

    def _find(self) -> None:
        modules: list[Any] = list(self._model.modules())
        self._held = [m._buffers for m in modules if m._buffers]  # noqa: SLF001 - the dicts themselves
        self._now = self._buffers()
        parameters: list[Any] = list(self._model.parameters())
        lazy = [one for one in parameters if is_lazy(one)]  # each stays the same object later
        self._looks_anew = bool(lazy)
        self._kinds = [_kind(one) for one in (*self._now, *lazy)]

    def _buffers(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._held)))


def _kind(tensor: Any) -> object:
    if tensor is None or is_lazy(tensor):
        return None
    return (tensor.shape, tensor.dtype)
