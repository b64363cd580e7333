"""Cheap running metrics: a mean, and an accuracy. Both stay on the device until somebody reads.

An update is one addition in place; sums are kept in float64 (float32 where a device has no
float64), and over all ranks it is sums and counts that are added up, never means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, distributed

from hatbus.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

CAN_BE_MANY: Final = distributed.is_available()
"""Whether this torch can share a run among processes."""


class Mean:
    """The mean of what it was given since the last reset.

    Args:
        name: under which it is published.
    """

    def __init__(self, name: str = "mean") -> None:
        self.name = name
        self.total = torch.zeros((), dtype=torch.float64)
        self.count: float | Tensor = 0

    def update(self, value: Tensor | ArrayLike, weight: float = 1) -> None:
        """Adds a value.

        Args:
            value: number, or tensor, array or list of any shape; each element counts once.
            weight: how often the value counts, for example the samples it is the mean of.
        """
        if not isinstance(value, Tensor):
            if isinstance(value, (int, float)):  # a copy to the device would wait for it
                self.total.add_(float(value), alpha=weight)
                self.count += weight
                return
            value = torch.as_tensor(value, dtype=self.total.dtype, device=self.total.device)
        count = weight
        if value.dim() != 0:
            count = weight * value.numel()
            value = value.detach().sum(dtype=self.total.dtype)
        if value.device != self.total.device:
            self.to(value.device)
        if value.requires_grad:
            value = value.detach()
        if weight == 1:
            self.total.add_(value)
        else:
            self.total.add_(value, alpha=weight)
        self.count += count

    def compute(self) -> Tensor:
        """The mean over all ranks, 0-d; NaN when nothing was added."""
        total, count = self.total, self.count
        if CAN_BE_MANY and distributed.is_initialized():
            total, count = over_all_ranks(total, count)
        if type(count) is int:
            count = float(count)  # torch divides by an int half as fast
        return total / count

    def reset(self) -> None:
        """Forgets everything."""
        self.total = torch.zeros_like(self.total)
        self.count = 0

    def to(self, device: torch.device | str) -> Mean:
        """Moves the sums to a device; returns itself."""
        lacks_float64 = torch.device(device).type == "mps"
        self.total = self.total.to(device, torch.float32 if lacks_float64 else torch.float64)
        return self

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return {"total": self.total.clone(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the sums back."""
        self.total = state["total"].to(self.total.device, self.total.dtype, copy=True)
        self.count = state["count"]


class LossShow(Mean):
    """The mean of a loss, under HAT's name.

    Args:
        name: of the loss that ``usual`` gives it.
    """

    def __init__(self, name: str = "loss") -> None:
        super().__init__(name)


class Accuracy(Mean):
    """The share of predictions that are right.

    Args:
        name: under which it is published; ``"accuracy"``, or ``"accuracy_top5"`` for ``top_k=5``.
        top_k: a prediction is right when the target is among the ``top_k`` highest scores.
        ignore_index: targets of this value do not count.
        threshold: above which a score of shape equal to the target's means 1.

    Raises:
        PluginError: ``top_k`` < 1.
    """

    def __init__(
        self,
        name: str = "",
        *,
        top_k: int = 1,
        ignore_index: int | None = None,
        threshold: float = 0.5,
    ) -> None:
        if top_k < 1:
            raise PluginError(f"Accuracy: top_k={top_k!r}; accepted: 1 or more")
        super().__init__(name or ("accuracy" if top_k == 1 else f"accuracy_top{top_k}"))
        self.top_k, self.ignore_index, self.threshold = top_k, ignore_index, threshold

    def update(self, preds: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Adds a batch.

        Args:
            preds: scores ``(N, C, ...)``; or classes (integers) or scores of the target's shape,
                which may also be ``(N, 1, ...)``.
            target: class numbers ``(N, ...)``.
        """
        right = correct(preds, target, self.top_k, self.threshold)
        if self.ignore_index is None:
            self.total.add_(right.sum())
            self.count += target.numel()
            return
        counted = target != self.ignore_index
        self.total.add_((right & counted).sum())
        self.count = self.count + counted.sum()  # a tensor: reading it here would wait


def correct(preds: Tensor, target: Tensor, top_k: int = 1, threshold: float = 0.5) -> Tensor:
    """Which predictions are right.

    Args:
        preds: see ``Accuracy.update``.
        target: class numbers ``(N, ...)``.
        top_k: how many of the highest scores may hold the target.
        threshold: for scores of the target's shape.

    Returns:
        Booleans of the target's shape.

    Raises:
        PluginError: the shapes do not belong together.
    """
    if preds.dim() == target.dim() + 1 and preds.shape[:1] + preds.shape[2:] == target.shape:
        if preds.shape[1] == 1:  # one score, not a choice of one class
            return correct(preds.squeeze(1), target, top_k, threshold)
        if top_k == 1:
            return preds.argmax(1) == target
        return (preds.topk(top_k, 1).indices == target.unsqueeze(1)).any(1)
    if preds.shape == target.shape:
        classes = preds > threshold if preds.is_floating_point() else preds
        return classes == target
    raise PluginError(
        f"Accuracy: predictions of shape {tuple(preds.shape)} and targets of shape "
        f"{tuple(target.shape)}; accepted: (N, C, ...) with (N, ...), or equal shapes"
    )


def sums_of(metrics: Sequence[tuple[str, Mean]], updates: int) -> Tensor:
    """What is to be added up over all ranks for the means of several metrics.

    Args:
        metrics: names and means; the same on all ranks.
        updates: how often this rank has added to them.

    Returns:
        (1 + 2 n,): the updates, the totals, the counts.
    """
    if not metrics:
        return torch.full((1,), float(updates), dtype=torch.float64)
    totals = [metric.total for _, metric in metrics]
    like = totals[0]
    numbers = [updates, *(metric.count for _, metric in metrics)]
    if like.device.type == "cpu" and not any(isinstance(one, Tensor) for one in numbers):
        found = like.new_tensor(numbers)
    else:  # a number is filled in on the device: a copy from the host would wait for it
        found = torch.stack(
            [n.to(like) if isinstance(n, Tensor) else torch.full_like(like, n) for n in numbers]
        )
    return torch.cat([found[:1], torch.stack([one.to(like) for one in totals]), found[1:]])


def means_of(metrics: Sequence[tuple[str, Mean]], sums: Tensor) -> dict[str, Tensor]:
    """Name to mean over all ranks, 0-d.

    Args:
        metrics: as given to ``sums_of``.
        sums: what that gave, added up over all ranks.
    """
    half = 1 + len(metrics)
    means = sums[1:half] / sums[half:]
    return dict(zip((name for name, _ in metrics), means.unbind(), strict=True))


def over_all_ranks(total: Tensor, count: float | Tensor) -> tuple[Tensor, Tensor]:
    """Sum and count added up over the ranks of the run; a collective."""
    # A number is filled in on the device: a copy from the host would wait for it.
    count = count.to(total) if isinstance(count, Tensor) else torch.full_like(total, count)
    both = torch.stack([total, count])
    distributed.all_reduce(both)
    return both[0], both[1]
