"""On which device a process trains."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator

AUTO: Final = "auto"
_ACCEPTED: Final = "'auto', 'cpu', 'cuda', 'cuda:1'"


def own_device(device: Any, model: torch.nn.Module, rank: int, world: int) -> torch.device:
    """The device of this process: under torchrun each rank takes a GPU of its own.

    ``"auto"`` is where the model is, if it is not on the host; else a GPU that CUDA (or ROCm) has;
    else the host. Other accelerators, such as Apple's, are taken when they are named, or when the
    model is there.

    Args:
        device: what was asked for.
        model: what is trained.
        rank: of this process.
        world: how many processes there are.

    Raises:
        JobError: there is no such device here.
    """
    if isinstance(device, str) and device == AUTO:
        there = next(devices_of(model), None)
        if there is not None and not (there.type == "cuda" and world > 1):
            return there
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise JobError(f"unknown device {device!r}; accepted: {_ACCEPTED}") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise JobError(
            f"device {str(device)!r} is not here: torch sees no GPU; accepted: 'auto', 'cpu'"
        )
    if str(place) == "cuda":
        local = int(os.environ.get("LOCAL_RANK", rank))  # of this machine's processes
        place = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(place)
    return place


def placed(model: torch.nn.Module, place: torch.device, asked: Any) -> torch.nn.Module:
    """The model on the device; one that ``"auto"`` finds spread over several stays as it is."""
    is_spread = len(set(devices_of(model))) > 1
    return model if is_spread and isinstance(asked, str) and asked == AUTO else model.to(place)


def follow(optimizer: Any) -> None:
    """Brings what an optimizer that was used before keeps to where its parameters are now."""
    held = optimizer.state.items() if getattr(optimizer, "state", None) else ()
    if any(is_elsewhere(parameter, kept) for parameter, kept in held):
        optimizer.load_state_dict(optimizer.state_dict())  # which brings it there


def is_elsewhere(parameter: Any, kept: Any) -> bool:
    """Whether a state of a parameter's shape is on another device than the parameter."""
    values = kept.values() if isinstance(kept, dict) else ()
    found = (one for one in values if isinstance(one, torch.Tensor) and one.ndim)
    return isinstance(parameter, torch.Tensor) and any(o.device != parameter.device for o in found)


def devices_of(model: torch.nn.Module) -> Iterator[torch.device]:
    """Where the parameters and buffers are that somebody has put on an accelerator."""
    for one in (*model.parameters(), *model.buffers()):
        if one.device.type not in {"cpu", "meta"}:
            yield one.device
