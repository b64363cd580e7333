"""Buffers whose shape comes with the data: grown, made in the first forward, sized by observers."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.parameter import is_lazy

from hatbus.loop import plain_name

if TYPE_CHECKING:
    from hatbus.loop import Context

_KEPT: Final = "checkpoint.buffers"
Kind = tuple[tuple[int, ...], torch.dtype]


def buffers_as_built(ctx: Context) -> dict[str, Kind]:
    """Shape and type of the model's persistent buffers at the first call, before the first step."""
    if _KEPT not in ctx.storage:
        ctx.storage[_KEPT] = _kinds(ctx.model, map(plain_name, ctx.model.state_dict()))
    found: dict[str, Kind] = ctx.storage[_KEPT]
    return found


def changed_buffers(ctx: Context, saved: Iterable[str]) -> list[str]:
    """Those of the saved tensors that are buffers of another shape or type than at the start."""
    built = buffers_as_built(ctx)
    return [name for name, kind in _kinds(ctx.model, saved).items() if built.get(name) != kind]


def give_shapes(model: torch.nn.Module, state: Mapping[str, Any], changed: Collection[str]) -> None:
    """Gives buffers the shape and type that they had come to when they were saved.

    Args:
        model: the model, as it is built.
        state: name in the model to tensor.
        changed: names of the buffers.
    """
    modules = dict(model.named_modules())
    made: dict[int, torch.Tensor] = {}
    for name in changed:
        prefix, _, key = name.rpartition(".")
        module, value = modules.get(prefix), state.get(name)
        now = getattr(module, key, None)
        if module is None or not isinstance(value, torch.Tensor) or _fits(now, value):
            continue
        where = now.device if isinstance(now, torch.Tensor) else _device_of(model)
        empty = torch.empty(value.shape, dtype=value.dtype, device=where)
        empty = empty if now is None else made.setdefault(id(now), empty)  # shared by two modules
        if hasattr(module, key):
            setattr(module, key, empty)
        else:  # registered in a forward
            module.register_buffer(key, empty)


def takes_its_own(model: torch.nn.Module, name: str, state: Mapping[str, Any]) -> bool:
    """Whether the module that holds a tensor loads it in spite of its shape, by a rule of its own.

    Observers of quantization do. Tried with a copy of that module, so nothing is touched.
    """
    prefix = name.rpartition(".")[0]
    module: Any = model.get_submodule(prefix)
    rule, torchs_own = type(module)._load_from_state_dict, torch.nn.Module._load_from_state_dict  # noqa: SLF001 - torch's way to give one
    if rule is torchs_own and not module._load_state_dict_pre_hooks:  # noqa: SLF001 - the other
        return False
    start = f"{prefix}." if prefix else ""
    part = {n.removeprefix(start): v for n, v in state.items() if n.startswith(start)}
    try:
        copy.deepcopy(module).load_state_dict(part, strict=False)
    except RuntimeError:
        return False
    return True


def _kinds(model: torch.nn.Module, saved: Iterable[str]) -> dict[str, Kind]:
    names = set(saved)
    buffers = ((plain_name(n), b) for n, b in model.named_buffers(remove_duplicate=False))
    return {n: (tuple(b.shape), b.dtype) for n, b in buffers if n in names and not is_lazy(b)}


def _fits(now: Any, value: torch.Tensor) -> bool:
    """Whether a buffer can take a value as it is; a parameter is never given another shape."""
    if isinstance(now, torch.nn.Parameter):
        return True
    if not isinstance(now, torch.Tensor) or is_lazy(now):
        return False
    return (now.shape, now.dtype) == (value.shape, value.dtype)


def _device_of(model: torch.nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
