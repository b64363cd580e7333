"""An optimizer's state by parameter name, so that it does not hang on the order of parameters."""

from __future__ import annotations

from typing import Any

import torch

from hatbus.errors import CheckpointError


def take(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state: per parameter name, the groups with parameter names, and whatever else it has."""
    found = dict(optimizer.state_dict())
    names = names_of(model, optimizer)
    flat = [name for group in names for name in group]
    state = found.pop("state")
    groups = found.pop("param_groups")
    return {
        "state": {flat[k]: v for k, v in state.items() if isinstance(k, int)},
        "groups": [{**g, "params": n} for g, n in zip(groups, names, strict=True)],
        "other": [(k, v) for k, v in state.items() if not isinstance(k, int)],
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
        CheckpointError: the groups or their parameters are not those that were saved.
    """
    names = names_of(model, optimizer)
    known = {n for g in saved["groups"] for n in g["params"]}
    fresh = [n for group in names for n in group if n not in known]
    gone = sorted(known - {n for group in names for n in group})
    differ = len(names) != len(saved["groups"])
    if differ or ((fresh or gone) and strict):
        raise CheckpointError(
            f"the optimizer has {len(names)} groups with {sum(map(len, names))} parameters, the "
            f"checkpoint {len(saved['groups'])} with {len(known)}"
            f"{_named('; without a saved state: ', fresh)}{_named('; no longer there: ', gone)}; "
            "build the optimizer as it was"
        )
    state: dict[Any, Any] = dict(saved["other"])
    groups, index = [], 0
    for group, mine in zip(saved["groups"], names, strict=True):
        groups.append({**group, "params": list(range(index, index + len(mine)))})
        state |= {index + i: saved["state"][n] for i, n in enumerate(mine) if n in saved["state"]}
        index += len(mine)
    optimizer.load_state_dict({**saved["more"], "state": state, "param_groups": groups})
    _keep_types(optimizer, state)
    return fresh


def names_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Per group the parameters' names; ``#3`` for the third that is none of the model's."""
    known = {id(p): name for name, p in reversed(list(model.named_parameters()))}
    index, groups = 0, []
    for group in optimizer.param_groups:
        mine = []
        for parameter in group["params"]:
            mine.append(known.get(id(parameter), f"#{index}"))
            index += 1
        groups.append(mine)
    return groups


def _keep_types(optimizer: torch.optim.Optimizer, state: dict[Any, Any]) -> None:
    """Undoes torch's cast of state to the parameter's type (fp32 state of a bf16 parameter)."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        for key, value in state.get(index, {}).items():
            now = optimizer.state[parameter][key]
            if isinstance(value, torch.Tensor) and now.dtype != value.dtype:
                optimizer.state[parameter][key] = value.to(now.device)


def _named(start: str, names: list[str]) -> str:
    return start + ", ".join(names[:5]) + (" ..." if len(names) > 5 else "") if names else ""
