"""The calls of a model as ``torch.fx`` traces them, where no batch is at hand to run it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from torch import fx

if TYPE_CHECKING:
    from torch import nn

    from hatbus_model.folding import Fold


_NO_VALUES: Final = ("shape", "dtype", "device", "ndim", "size", "dim", "numel")


def reasons_by_trace(model: nn.Module, folds: Sequence[Fold], *, inplace: bool) -> dict[str, str]:
    """Why pairs may not be folded, by the graph of a copy of the model.

    Args:
        model: the raw model, which stays as it is.
        folds: the pairs.
        inplace: whether the convolutions' modules stay.

    Returns:
        Name of each norm that may not be folded, to the reason.
    """
    tensors = [*model.parameters(), *model.buffers()]
    try:
        copied = copy.deepcopy(model, {id(one): one for one in tensors}).eval()
        for fold in folds:  # who holds the old ones elsewhere holds what is no part of the model
            for name in (fold.norm,) if inplace else (fold.conv, fold.norm):
                parent, _, key = name.rpartition(".")
                held = copied.get_submodule(parent)._modules  # noqa: SLF001 - whatever holds it
                held[key] = copy.copy(held[key])
        graph = _Tracer().trace(copied)
    except Exception as error:  # noqa: BLE001 - torch and the user's forward raise anything
        first = (str(error) or type(error).__name__).splitlines()[0]
        reason = f"nothing shows how it is called: torch.fx cannot trace the model ({first})"
        return dict.fromkeys((fold.norm for fold in folds), f"{reason}; run it with probe=")
    calls: dict[str, list[Any]] = {}
    for node in graph.nodes:
        target = node.target if node.op == "call_module" else str(node.target).rpartition(".")[0]
        calls.setdefault(target if node.op in ("call_module", "get_attr") else "", []).append(node)
    found = {f.norm: _reason(calls.get(f.conv, []), calls.get(f.norm, [])) for f in folds}
    return {name: reason for name, reason in found.items() if reason}


class _Tracer(fx.Tracer):
    """Sees the uses of buffers too, such as running statistics."""

    proxy_buffer_attributes = True


def _is_a_use(node: Any) -> bool:
    """Whether a node uses values; what only asks for a shape does not."""
    asked = node.args[1] if node.op == "call_function" and node.target is getattr else node.target
    return asked not in _NO_VALUES


def _reason(convs: list[Any], norms: list[Any]) -> str:
    if any(node.op == "get_attr" for node in (*convs, *norms)):
        return "its tensors, or its convolution's, are used elsewhere too"
    if not convs or not norms:
        return "the model does not call it and its convolution"
    if any(node.args[:1] and node.args[0] not in convs for node in norms):
        return "what goes into it is not what its convolution gives"
    users = [user for node in convs for user in node.users]
    others = [user for user in users if user not in norms and _is_a_use(user)]
    if others:
        return f"what its convolution gives goes into {others[0].name!r} too"
    goes_on = all(any(user in norms for user in node.users) for node in convs)
    return "" if goes_on else "not all that its convolution gives goes into it"
