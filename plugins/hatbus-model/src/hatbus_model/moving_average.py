"""Exponential moving averages of many tensors at once, with a decay that warms up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hatbus.errors import JobError
from hatbus.loop import plain_name
from hatbus.option_values import is_number, one_of
from hatbus.parallel import is_shard, local_tensor, reshard

if TYPE_CHECKING:
    from torch import Tensor

Place = tuple[dict[str, Any], str]
"""A module's dict and a key in it: where a tensor is, whatever tensor that is at the time."""
_FIXED: Final = ("running_mean", "running_var", "num_batches_tracked")
"""Buffers of torch's norms, of which there are many: no forward pass gives them another shape."""
_OBSERVERS: Final = ("FakeQuantizeBase", "ObserverBase")
WARMUPS: Final = ("exponential", "power")
_LOW: Final = (torch.float16, torch.bfloat16)
_SMALLEST: Final = 2
"""Bytes of what can be averaged: floats of one are codes, which a scale elsewhere gives meaning."""


def decay_at(update: int, decay: float, decay_base: float) -> float:
    """``decay * (1 - exp(-update / decay_base))``; ``decay_base`` 0: ``decay`` from the start.

    Args:
        update: number of the committed update, from 1.
        decay: what it tends to.
        decay_base: updates after which it has come 63 % of the way.

    Source: ``hat.callbacks.ExponentialMovingAverage``.
    """
    return decay if decay_base == 0 else decay * -math.expm1(-update / decay_base)


def decay_by_power(update: int, decay: float) -> float:
    """``min(decay, 1 - update ** (-2 / 3))``: 0, 0.78 at update 10, 0.99 at 1,000.

    Args:
        update: number of the committed update, from 1.
        decay: the greatest.

    Source: ``timm.utils.ModelEmaV3`` with ``use_warmup``.
    """
    return min(decay, 1.0 - math.pow(update, -2.0 / 3.0))


def warming_up(plugin: str, warmup: str, decay: float, decay_base: float) -> Callable[[int], float]:
    """The decay as a function of the update's number.

    Raises:
        JobError: no such warm-up.
    """
    one_of(f"{plugin}: warmup", warmup, WARMUPS)
    if warmup == "power":
        return partial(decay_by_power, decay=decay)
    return partial(decay_at, decay=decay, decay_base=decay_base)


def check_decay(plugin: str, decay: Any, decay_base: Any) -> tuple[float, float]:
    """The two numbers, if an average can be made with them.

    Raises:
        JobError: which one cannot be used, and what is accepted.
    """
    decay = 0.9999 if decay is None else decay  # the default, as None is on HAT's page
    if not is_number(decay) or not 0 <= decay < 1:
        raise JobError(f"{plugin}: decay is {decay!r}; accepted: 0 <= decay < 1")
    base = 0.0 if decay_base is None else decay_base
    if not is_number(base) or not 0 <= base < math.inf:
        raise JobError(f"{plugin}: decay_base is {decay_base!r}; accepted: updates > 0, or 0")
    return float(decay), float(base)


def places(model: nn.Module) -> dict[str, Place]:
    """Where the model keeps its parameters and persistent buffers, by name; each tensor once.

    What ``torch.compile`` has wrapped is looked through; what has no shape yet is left out.
    """
    reshard(model)
    found: dict[str, Place] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        inside: Any = module
        passing = inside._non_persistent_buffers_set  # noqa: SLF001 - torch shows it nowhere else
        parameters, buffers = inside._parameters, inside._buffers  # noqa: SLF001 - the dicts themselves
        listed = [(parameters, key) for key in parameters]
        listed += [(buffers, key) for key in buffers if key not in passing]
        for held, key in listed:
            tensor = held[key]
            if tensor is None or is_lazy(tensor) or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            found[plain_name(f"{prefix}.{key}" if prefix else key)] = (held, key)
    return found


def of_observers(model: nn.Module) -> list[str]:
    """Names of the buffers of torch's observers and fake quantisation.

    A range begins at infinity and goes with a whole-numbered zero point: it is copied.
    """
    return [
        plain_name(f"{prefix}.{name}" if prefix else name)
        for prefix, module in model.named_modules()
        if any(one.__name__ in _OBSERVERS for one in type(module).__mro__)
        for name, _ in module.named_buffers()
    ]


def averaged_dtype(tensor: Tensor) -> torch.dtype:
    """What an average is kept in: halves are too coarse for small steps, so they take float32."""
    return torch.float32 if tensor.dtype in _LOW else tensor.dtype


def is_averaged(tensor: Tensor) -> bool:
    """Whether a tensor can be averaged (otherwise it is copied)."""
    is_number = tensor.is_floating_point() or tensor.is_complex()
    return is_number and tensor.element_size() >= _SMALLEST


@dataclass(frozen=True, slots=True)
class Lane:
    """Averages and what they follow, all of one kind, so that one call moves them.

    Of shards (FSDP2) ``averages`` are the parts on this process, and so is what they follow.
    """

    averages: list[Tensor]
    followed: list[Place]
    averaged: bool
    sharded: bool = False
    heals: bool = False

    def move(self, live: list[Tensor], weight: float) -> None:
        """``average += weight * (live - average)``, or a copy for what is not averaged."""
        if self.heals:
            for average, tensor in zip(self.averages, live, strict=True):
                began = average.isfinite()
                average.copy_(torch.where(began, average.lerp(tensor, weight), tensor))
        elif self.averaged:
            torch._foreach_lerp_(self.averages, live, weight)
        else:
            torch._foreach_copy_(self.averages, live)

    def live(self) -> list[Tensor]:
        """What is followed, where and in what the averages are; waits once for another device.

        Raises:
            KeyError: something is not there any more.
        """
        live: list[Any] = [t for held, key in self.followed if (t := held[key]) is not None]
        if len(live) != len(self.followed):
            raise KeyError
        if self.sharded:
            live = [shard.to_local() for shard in live]
        first, found = self.averages[0], live[0]
        if found.device != first.device:
            # Without waiting only where the wait is done here: elsewhere copies may be under way.
            live = [tensor.to(first.device, non_blocking=found.is_cuda) for tensor in live]
            if found.is_cuda:  # the copies are in pinned memory, and only under way
                torch.cuda.current_stream(found.device).synchronize()
        if found.dtype != first.dtype:
            live = [tensor.to(first.dtype) for tensor in live]
        return live


class Lanes:
    """Many averages, moved together or not at all.

    Attributes:
        looked_at: an average's id to itself, and whether it heals: whether it was not finite when
            it was first looked at.

    Args:
        averages: the averages by name.
        followed: what they follow, under the same names.
        copied: names that are copied although they could be averaged.
        before: the lanes of before, which have looked at some of the averages already; looking at
            one that is new waits for the device.
    """

    def __init__(
        self,
        averages: Mapping[str, Tensor],
        followed: Mapping[str, Place],
        copied: Iterable[str] = (),
        before: Lanes | None = None,
    ) -> None:
        looked_at: dict[int, tuple[Tensor, bool]] = {} if before is None else before.looked_at
        known = {n: looked_at[id(a)][1] for n, a in averages.items() if id(a) in looked_at}
        new = {n: average for n, average in averages.items() if n not in known}
        healing = not_finite(new, followed) | {name for name, heals in known.items() if heals}
        self.looked_at: dict[int, tuple[Tensor, bool]] = {
            id(a): (a, n in healing) for n, a in averages.items()
        }
        as_is = set(copied)
        found: dict[object, Lane] = {}
        self._buffers: list[tuple[torch.Size, torch.dtype, dict[str, Any], str]] = []
        for name, average in averages.items():
            held, key = followed[name]
            live = held[key]
            moves, sharded = is_averaged(live) and name not in as_is, is_shard(live)
            heals = moves and name in healing
            kind = (moves, sharded, heals, average.dtype, average.device, live.dtype, live.device)
            lane = found.setdefault(kind, Lane([], [], moves, sharded, heals))
            lane.averages.append(local_tensor(average))
            lane.followed.append(followed[name])
            if not isinstance(live, nn.Parameter) and key not in _FIXED:
                self._buffers.append((average.shape, live.dtype, held, key))
        self._lanes = list(found.values())

    def move(self, weight: float) -> bool:
        """Moves every average by ``weight`` towards what it follows.

        A buffer that was not finite when it was first seen (an observer that has seen nothing) is
        copied until it is.

        Returns:
            False when something is not there any more, or a buffer has another shape; then nothing
            has moved, and the lanes have to be made anew.
        """
        pairs = self._pairs()
        if pairs is None:
            return False
        for lane, live in pairs:
            lane.move(live, weight)
        return True

    def copy(self) -> bool:
        """Makes every average equal to what it follows; False as ``move``."""
        pairs = self._pairs()
        if pairs is None:
            return False
        for lane, live in pairs:
            torch._foreach_copy_(lane.averages, live)
        return True

    def _pairs(self) -> list[tuple[Lane, list[Tensor]]] | None:
        """The lanes with what they follow now; None when that is not what it was."""
        for shape, dtype, held, key in self._buffers:
            now = held.get(key)
            if now is None or now.shape != shape or now.dtype is not dtype:
                return None
        try:
            return [(lane, lane.live()) for lane in self._lanes]
        except KeyError:
            return None


def not_finite(averages: Mapping[str, Tensor], followed: Mapping[str, Place]) -> set[str]:
    """Names of the averages of buffers that are not finite; waits once for the device."""
    held = ((name, followed[name]) for name, value in averages.items() if is_averaged(value))
    names = [name for name, (inside, key) in held if not isinstance(inside[key], nn.Parameter)]
    if not names:
        return set()
    flags = torch.stack([torch.isfinite(averages[name]).all() for name in names])
    return {name for name, fine in zip(names, flags.tolist(), strict=True) if not fine}
