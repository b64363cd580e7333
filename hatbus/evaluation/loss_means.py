"""Means of losses over samples and ranks; nothing waits for the device until they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, distributed

from hatbus.data.batch_size import samples_in

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST: Final = 64
"""Losses that wait to be added up; one addition of many takes a tenth of many additions."""


class LossMeans:
    """The mean of every loss, by name: ``<loss>``, or ``<task>/<loss>``.

    A batch's loss counts as often as the batch has samples, which is exact for losses that are a
    mean over the batch. A batch in which nothing has a length counts as one sample, an empty one
    (every sample was dropped) not at all; a loss of no sample has no mean.

    Args:
        only_finite: leave out losses that are NaN or infinite.
        agreed: names that all ranks know of each other; several objects may share one list.
    """

    def __init__(self, *, only_finite: bool = False, agreed: list[str] | None = None) -> None:
        self.only_finite = only_finite
        self._agreed = [] if agreed is None else agreed
        self._waiting: list[tuple[str, int, Tensor]] = []
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Any] = {}

    def add(self, losses: Mapping[str, Tensor], task: str | None, batch: Any) -> None:
        """Adds the losses of a batch; they stay on their device.

        Args:
            losses: name to 0-d tensor.
            task: whose batch it was; None in a run without tasks.
            batch: says how many samples there are.
        """
        found = samples_in(batch)
        size = 1 if found is None else found
        waiting = self._waiting
        for loss, value in losses.items():
            name = loss if task is None else f"{task}/{loss}"
            waiting.append((name, size, value.detach()))
        if len(waiting) >= _MOST:
            self._settle()

    def merge(self, other: LossMeans) -> None:
        """Adds what another has gathered, which stays as it is."""
        for name, total in other._sums.items():
            self._add(name, total, other._counts[name])
        self._waiting += other._waiting
        if len(self._waiting) >= _MOST:
            self._settle()

    def numbers(self, device: torch.device) -> Tensor:
        """What is to be added up over all ranks, to give it to ``means``.

        Args:
            device: on which they exchange.

        Returns:
            (1 + 2 n,): whether there are losses whose names not all ranks know, and for each of the
            known ones sum and count.
        """
        self._settle()
        is_new = float(not self._sums.keys() <= set(self._agreed))
        zero = torch.zeros((), dtype=wide(device), device=device)
        sums = [self._sums.get(name, zero).to(zero).reshape(1) for name in self._agreed]
        counts = [torch.full_like(zero, float(self._counts.get(n, 0))) for n in self._agreed]
        return torch.cat([torch.full_like(zero, is_new).reshape(1), *sums, *map(_row, counts)])

    def means(
        self, world_size: int, device: torch.device, summed: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Name to mean over all ranks, 0-d in float64 (float32 where the device has none).

        A collective: the ranks wait for each other, but with ``summed`` only when one has met a
        loss for the first time.

        Args:
            world_size: processes of the run; None is asked when it is 1.
            device: on which they exchange.
            summed: what ``numbers`` gave, added up over all ranks.
        """
        self._settle()
        if world_size == 1:
            counted = (name for name, count in self._counts.items() if count)
            return {name: self._sums[name] / self._counts[name] for name in counted}
        if summed is None or summed[0].item():
            self._agree(world_size)
            summed = self.numbers(device)
            distributed.all_reduce(summed)
        totals, counts = summed[1:].chunk(2) if self._agreed else (summed[1:], summed[1:])
        every = zip(self._agreed, totals / counts, counts.tolist(), strict=True)
        return {name: mean for name, mean, count in every if count}

    def _agree(self, world_size: int) -> None:
        """Tells all ranks which losses this one has met; a collective."""
        met: list[list[str]] = [[] for _ in range(world_size)]
        distributed.all_gather_object(met, list(self._sums))
        names = dict.fromkeys(name for mine in met for name in mine)
        self._agreed += [name for name in names if name not in self._agreed]

    def clear(self) -> None:
        """Forgets everything."""
        self._waiting, self._sums, self._counts = [], {}, {}

    def state_dict(self) -> dict[str, Any]:
        """The sums and the samples that they are of, and what waits: no sum goes by when it is."""
        return {
            "sums": {name: total.clone() for name, total in self._sums.items()},
            "counts": {name: float(count) for name, count in self._counts.items()},
            "waiting": [[name, size, value.clone()] for name, size, value in self._waiting],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes them back."""
        self.clear()
        self._sums = {name: total.clone() for name, total in state["sums"].items()}
        self._counts = dict(state["counts"])
        self._waiting = [(name, int(size), value.clone()) for name, size, value in state["waiting"]]

    def _settle(self) -> None:
        """Adds up what waits; sizes stay on the host, as a copy to the device would wait."""
        waiting, self._waiting = self._waiting, []
        alike: dict[tuple[str, int, torch.device], list[Tensor]] = {}
        for name, size, value in waiting:
            alike.setdefault((name, size, value.device), []).append(value)
        for (name, size, device), values in alike.items():
            # The mean over no sample is NaN, also when it counts 0 times.
            together = torch.stack(values).to(wide(device)) if size else torch.zeros(0)
            count: Any = size * len(values)
            if self.only_finite and size:
                is_good = together.isfinite()
                together, count = together[is_good], size * int(is_good.sum())
            self._add(name, together.sum() * size, count)

    def _add(self, name: str, total: Tensor, count: Any) -> None:
        if name in self._sums:
            total = self._sums[name].to(total) + total
            count += self._counts[name]
        self._sums[name], self._counts[name] = total, count


def _row(number: Tensor) -> Tensor:
    return number.reshape(1)


def wide(device: torch.device) -> torch.dtype:
    """The widest floating type of a device."""
    return torch.float32 if device.type == "mps" else torch.float64
