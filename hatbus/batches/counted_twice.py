"""Losses that hold one another: all are summed, so a total beside its parts counts twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_SUMS: Final = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Neg",
    "Sum",
    "Mean",
    "Stack",
    "Cat",
    "Squeeze",
    "Unsqueeze",
    "View",
    "Reshape",
    "Expand",
    "Select",
    "Unbind",
    "ToCopy",
    "Alias",
)
"""Nodes of torch's graph by which a total is made of parts; what else uses a loss makes another."""
_NODES: Final = 1000
_COMPILED: Final = "CompiledFunctionBackward"
_CLOSE: Final = 1e-6


def counted_twice(losses: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Which losses hold others: as sums of them, with or without weights, or as the same tensor.

    Looks at the graph right above each loss, and, where the graph is a compiled one, whether one
    loss has the value of the sum of the others.

    Args:
        losses: by name, 0-d; before their backward pass.

    Returns:
        Name of each such loss to the names of the losses in it; empty if every one is alone.
    """
    made = {n: (v.grad_fn, v.output_nr) for n, v in losses.items() if v.grad_fn is not None}
    found: dict[str, list[str]] = {}
    for name, top in made.items():
        inside = _reached(top)
        parts = [n for n, node in made.items() if n != name and node in inside]
        parts = [n for n in parts if name not in found.get(n, ())]  # the same tensor, named once
        if parts:
            found[name] = parts
    return found or _by_value({n: losses[n] for n in made})


def _reached(top: tuple[Any, int]) -> set[tuple[Any, int]]:
    """The nodes from which sums lead to a loss, itself included."""
    seen, waiting = {top}, [top[0]]
    while waiting and len(seen) < _NODES:
        node = waiting.pop()
        if not node.name().startswith(_SUMS):
            continue
        new = [edge for edge in node.next_functions if edge[0] is not None and edge not in seen]
        seen.update(new)
        waiting += [edge[0] for edge in new]
    return seen


def _by_value(losses: dict[str, torch.Tensor]) -> dict[str, list[str]]:
    """The one loss that is the sum of all others, where a compiled graph shows no sums."""
    if len(losses) < 2 or not any(_is_compiled(loss) for loss in losses.values()):
        return {}
    values = {name: loss.item() for name, loss in losses.items()}
    for name, value in values.items():
        rest = sum(values.values()) - value
        if value and abs(value - rest) <= _CLOSE * abs(value):
            return {name: [n for n in values if n != name]}
    return {}


def _is_compiled(loss: torch.Tensor) -> bool:
    return loss.grad_fn is not None and loss.grad_fn.name() == _COMPILED
