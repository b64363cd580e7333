"""An optimizer's state by parameter name, so that it does not hang on the order of parameters.

``state_dict`` and ``load_state_dict`` are the contract, whatever an optimizer keeps where.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch

from hatbus.errors import CheckpointError
from hatbus.log import log
from hatbus.loop import plain_name
from hatbus_checkpoint.same_tree import differing
from hatbus_checkpoint.sharded.placing import Placing


def take(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state: per parameter name, the groups with parameter names, and whatever else it has.

    Of an optimizer whose ``state_dict`` has another form than torch's, all of it as ``whole``.
    """
    found = dict(optimizer.state_dict())
    names = names_of(model, optimizer)
    kind = type(optimizer).__name__
    if not _is_torchs_form(found, len(names)):
        return {"kind": kind, "groups": [{"params": n} for n in names], "whole": found}
    flat = dict(enumerate(name for group in names for name in group))
    state = found.pop("state")
    groups = found.pop("param_groups")
    return {
        "kind": kind,
        "state": {flat[k]: v for k, v in state.items() if k in flat},
        "groups": [{**_data_of(g), "params": n} for g, n in zip(groups, names, strict=True)],
        "other": [(k, v) for k, v in state.items() if k not in flat],
        "more": found,
    }


def give(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any], *, strict: bool
) -> list[str]:
    """Gives an optimizer its state back.

    Args:
        model: the model, its structure as it was when the state was taken.
        optimizer: over that model.
        saved: from ``take``.
        strict: refuse parameters without a saved state, or the other way round.

    Returns:
        Names of parameters that start without a state although they are in a known group.

    Raises:
        CheckpointError: the groups or their parameters are not those that were saved, or the
            state is of another class of optimizer.
    """
    kind = type(optimizer).__name__
    if saved.get("kind", kind) != kind:
        raise CheckpointError(
            f"the optimizer is {kind}, the checkpoint holds the state of {saved['kind']:.99}; a "
            "plugin that puts another optimizer in its place does so in load_state_dict as well"
        )
    saved = _plainly_named(saved)
    names = names_of(model, optimizer)
    fresh = _check_names(names, saved["groups"], strict=strict)
    whole = saved.get("whole")
    if whole is not None:
        if fresh or names != [g["params"] for g in saved["groups"]]:
            raise CheckpointError(
                f"the state of {kind} is by place and not by parameter: build it with the "
                "parameters in the order in which it was saved"
            )
        optimizer.load_state_dict(Placing(dict(model.named_parameters()), ()).of_plugin(whole))
        return fresh
    placing = Placing(dict(model.named_parameters()), ())
    state: dict[Any, Any] = dict(saved["other"])
    groups, index = [], 0
    live, shared = optimizer.param_groups, shared_options(optimizer)
    for group, mine, now in zip(saved["groups"], names, live, strict=True):
        built = {key: value for key, value in now.items() if _is_as_built(value)}
        groups.append({**built, **group, "params": list(range(index, index + len(mine)))})
        held = enumerate(zip(mine, now["params"], strict=True))
        state |= {
            index + i: placing.of_optimizer(saved["state"][n], p)
            for i, (n, p) in held
            if n in saved["state"]
        }
        index += len(mine)
    optimizer.load_state_dict({**saved["more"], "state": state, "param_groups": groups})
    _keep_types(optimizer, state)
    share(optimizer, shared)
    changed = differing(state, optimizer.state_dict()["state"])
    if changed is not None:
        what = "optimizer %s does not give back the state that it is given (%s); not bit-exact"
        log.warning(what, kind, changed)
    return fresh


def shared_options(optimizer: torch.optim.Optimizer) -> list[list[tuple[int, str]]]:
    """Where several param groups have one tensor as an option, such as a learning rate."""
    found: dict[int, list[tuple[int, str]]] = {}
    for index, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if isinstance(value, torch.Tensor):
                found.setdefault(id(value), []).append((index, key))
    return [places for places in found.values() if len(places) > 1]


def share(optimizer: torch.optim.Optimizer, shared: list[list[tuple[int, str]]]) -> None:
    """Makes options one tensor again that were one when the optimizer was built, if still equal."""
    groups = optimizer.param_groups
    for (first, key), *others in shared:
        one: Any = groups[first].get(key)
        for index, name in others:
            other: Any = groups[index].get(name)
            are_tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
            if are_tensors and one.equal(other):
                groups[index][name] = one


def _data_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a group without functions and enums: these stay as a run is built."""
    return {key: value for key, value in group.items() if not _is_as_built(value)}


def _is_as_built(value: Any) -> bool:
    """Whether an option is no data, but has no state either that a run could change."""
    return isinstance(value, (Enum, type, FunctionType, BuiltinFunctionType))


def names_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Per group the parameters' names; ``#3`` for the third that is none of the model's."""
    named = reversed(list(model.named_parameters()))
    known = {id(p): plain_name(name) for name, p in named}
    index, groups = 0, []
    for group in optimizer.param_groups:
        mine = []
        for parameter in group["params"]:
            mine.append(known.get(id(parameter), f"#{index}"))
            index += 1
        groups.append(mine)
    return groups


def _plainly_named(saved: dict[str, Any]) -> dict[str, Any]:
    """The same without the names of ``torch.compile``'s wrappers, which older ones may have."""
    groups = [{**g, "params": list(map(plain_name, g["params"]))} for g in saved["groups"]]
    if "state" not in saved:
        return {**saved, "groups": groups}
    return {
        **saved,
        "groups": groups,
        "state": {plain_name(k): v for k, v in saved["state"].items()},
    }


def _is_torchs_form(found: Mapping[str, Any], many: int) -> bool:
    """Whether a state dict has torch's two parts, one entry per group in the second."""
    groups = found.get("param_groups")
    is_list = isinstance(groups, list) and len(groups) == many
    return isinstance(found.get("state"), Mapping) and is_list


def _check_names(names: list[list[str]], saved: list[dict[str, Any]], *, strict: bool) -> list[str]:
    """The names without a saved state.

    Raises:
        CheckpointError: the groups are others.
    """
    known = {n for g in saved for n in g["params"]}
    fresh = [n for group in names for n in group if n not in known]
    gone = sorted(known - {n for group in names for n in group})
    differ = len(names) != len(saved)
    if differ or ((fresh or gone) and strict):
        raise CheckpointError(
            f"the optimizer has {len(names)} groups with {sum(map(len, names))} parameters, the "
            f"checkpoint {len(saved)} with {len(known)}"
            f"{_named('; without a saved state: ', fresh)}{_named('; no longer there: ', gone)}; "
            "build the optimizer as it was"
        )
    return fresh


def _keep_types(optimizer: torch.optim.Optimizer, state: dict[Any, Any]) -> None:
    """Undoes torch's cast of state to the parameter's type (fp32 state of a bf16 parameter)."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held = getattr(optimizer, "state", {})
    for index, parameter in enumerate(parameters):
        if index in state and parameter in held:
            _put_back(held[parameter], state[index])


def _put_back(held: Any, saved: Any) -> None:
    """The same in one parameter's state, at any depth; keys that are not there are left alone."""
    if not isinstance(saved, dict) or not isinstance(held, dict):
        return
    for key in saved.keys() & held.keys():
        value, now = saved[key], held[key]
        if isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor):
            if now.dtype != value.dtype:
                held[key] = value.to(now.device)
        elif isinstance(value, str):
            held[key] = value  # torch makes a generator's repr of a text
        elif isinstance(value, (list, tuple, deque)):
            held[key] = _put_back_each(now, value)
        else:
            _put_back(now, value)


def _put_back_each(held: Any, saved: Any) -> Any:
    """The same in a sequence; torch makes a deque without its length."""
    if type(held) is not type(saved) or len(held) != len(saved):
        return held
    found = []
    for now, value in zip(held, saved, strict=True):
        _put_back(now, value)
        is_cast = isinstance(value, torch.Tensor) and now.dtype != value.dtype
        found.append(value.to(now.device) if is_cast else now)
    return deque(found, saved.maxlen) if isinstance(saved, deque) else type(saved)(found)


def _named(start: str, names: list[str]) -> str:
    return start + ", ".join(names[:5]) + (" ..." if len(names) > 5 else "") if names else ""
