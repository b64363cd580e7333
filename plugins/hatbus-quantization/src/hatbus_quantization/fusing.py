"""Which modules of a model make one when it is quantised: a convolution, its norm, its ReLU."""

from __future__ import annotations

from typing import Final

from torch import nn

Kinds = tuple[tuple[tuple[type[nn.Module], ...], ...], ...]
_CONVS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_KINDS: Final[Kinds] = (
    (_CONVS, _NORMS, (nn.ReLU,)),
    (_CONVS, _NORMS),
    (_CONVS, (nn.ReLU,)),
    ((nn.Linear,), (nn.BatchNorm1d,)),
    ((nn.Linear,), (nn.ReLU,)),
)
"""What torch fuses, longest first: the classes of modules that follow one another."""
WITH_NORM: Final[Kinds] = ((_CONVS, _NORMS), ((nn.Linear,), (nn.BatchNorm1d,)))


def fusable(model: nn.Module, *, norms_only: bool = False) -> list[list[str]]:
    """Names of neighbours inside ``Sequential``s that torch can fuse, group by group.

    Args:
        model: the model.
        norms_only: only a convolution or linear and its batch norm, as for folding.
    """
    kinds = WITH_NORM if norms_only else _KINDS
    found = []
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            found += _in_sequence(prefix, module, kinds)
    return found


def _in_sequence(prefix: str, module: nn.Sequential, kinds: Kinds) -> list[list[str]]:
    children = list(module.named_children())
    found: list[list[str]] = []
    place = 0
    while place < len(children):
        group = _longest(children[place:], kinds)
        if group:
            found.append([f"{prefix}.{name}" if prefix else name for name in group])
        place += len(group) or 1
    return found


def _longest(children: list[tuple[str, nn.Module]], kinds: Kinds) -> list[str]:
    for kind in kinds:
        part = children[: len(kind)]
        if len(part) == len(kind) and all(
            type(module) in classes for (_, module), classes in zip(part, kind, strict=True)
        ):
            return [name for name, _ in part]
    return []
