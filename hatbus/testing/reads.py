"""Counts what would make the host wait for an accelerator: values read from tensors.

On a CPU nothing waits, so a read costs nothing there and is easily overlooked. This counts reads
as they would be on a GPU: ``item()``, ``float(t)``, ``if t:``, ``tolist()``, ``numpy()``,
``cpu()``, and operations whose result's shape or truth depends on values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING: Final = frozenset(
    {
        torch.ops.aten._local_scalar_dense.default,  # noqa: SLF001 - the operation's name
        torch.ops.aten.equal.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.repeat_interleave.Tensor,
        torch.ops.aten._unique2.default,  # noqa: SLF001 - the operation's name
    }
)
_COPIES: Final = {
    torch.Tensor.cpu: "cpu()",
    torch.Tensor.numpy: "numpy()",
    torch.Tensor.tolist: "tolist()",
    torch.Tensor.__array__: "numpy",
}
"""Reads that on the CPU never reach the dispatcher."""


class Reads:
    """Counts reads while it is open as a context.

    Args:
        note: called with the name of every read, in place of counting alone.

    Attributes:
        count: reads so far.
    """

    def __init__(self, note: Callable[[str], None] | None = None) -> None:
        self.count = 0
        self._note = note
        self._modes: tuple[Any, ...] = (_Operations(self), _Methods(self))

    def add(self, name: str) -> None:
        """Counts one."""
        self.count += 1
        if self._note is not None:
            self._note(name)

    def __enter__(self) -> Reads:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    def __init__(self, reads: Reads) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WAITING or _selects_by_truth(func, args):
            name = func.__name__.partition(".")[0]
            self._reads.add("item()" if name == "_local_scalar_dense" else f"torch.{name}")
        return func(*args, **(kwargs or {}))


def _selects_by_truth(func: Any, args: Any) -> bool:
    """Whether an operation is ``t[mask]``, whose result's length depends on the mask's values."""
    if func is not torch.ops.aten.index.Tensor:
        return False
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


class _Methods(TorchFunctionMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _COPIES.get(func) or _copy_to_cpu(func, args, kwargs or {})
        if name:
            self._reads.add(name)
        return func(*args, **(kwargs or {}))


def _copy_to_cpu(func: Any, args: Any, kwargs: Any) -> str:
    """``"to('cpu')"`` for that call, else empty.

    A ``torch.device`` is not looked at: in a run on the CPU it is the device where all else is.
    """
    if func is not torch.Tensor.to:
        return ""
    named = [one for one in (*args[1:], kwargs.get("device")) if isinstance(one, str)]
    return "to('cpu')" if "cpu" in named else ""
