"""How a scheduler wants to be stepped: torch's own, one that follows a metric, timm's."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final, Literal

from torch import distributed, float64, tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hatbus.bus import one_number
from hatbus.errors import JobError

if TYPE_CHECKING:
    from hatbus.loop import Context

Kind = Literal["count", "metric", "timm"]
_FOLLOWS: Final = "a published name such as 'val/loss'"


def kind_of(scheduler: Any, name: str) -> Kind:
    """How a scheduler is stepped: once per step or epoch, with a metric, or to a count (timm).

    Args:
        scheduler: what a class or function made.
        name: of that.

    Raises:
        JobError: it cannot be stepped, or keeps a state that it does not save.
    """
    if callable(getattr(scheduler, "step_update", None)):
        if isinstance(getattr(scheduler, "lr_scheduler", None), ReduceLROnPlateau):
            raise JobError(
                f"torch_lr: {name} is timm's plateau, whose state no checkpoint can hold; use "
                "scheduler = 'ReduceLROnPlateau' with metric"
            )
        return "timm"
    step = getattr(scheduler, "step", None)
    if not callable(step) or not hasattr(scheduler, "state_dict"):
        raise JobError(
            f"torch_lr: {name} gave a {type(scheduler).__name__}; accepted: a scheduler (step, "
            "state_dict, load_state_dict)"
        )
    return "metric" if isinstance(scheduler, ReduceLROnPlateau) or wants_metric(step) else "count"


def wants_metric(step: Any) -> bool:
    """Whether a ``step`` cannot be called without an argument."""
    try:
        inspect.signature(step).bind()
    except TypeError:
        return True
    except ValueError:  # a function written in C
        return False
    return False


def check_kind(scheduler: Any, kind: Kind, name: str, metric: str | None, update_by: str) -> None:
    """Refuses options that do not go with a scheduler.

    Raises:
        JobError: which, and what to do.
    """
    if (kind == "metric") != (metric is not None):
        accepted = f"{_FOLLOWS} for {name}" if kind == "metric" else f"None with {name}"
        raise JobError(f"torch_lr: metric is {metric!r}; accepted: {accepted}")
    by_epoch = getattr(scheduler, "t_in_epochs", None)
    if kind == "timm" and by_epoch is not None and by_epoch != (update_by == "epoch"):
        wanted = "epoch" if by_epoch else "step"
        raise JobError(
            f"torch_lr: {name} counts in {wanted}s (t_in_epochs={by_epoch}); "
            f"set update_by = {wanted!r}"
        )


def check_length(scheduler: Any, name: str, planned: int | None, unit: str) -> None:
    """Refuses a run that is longer than a scheduler that has an end (``OneCycleLR``).

    torch's would jump up in its last step, and raise in the next.

    Raises:
        JobError: both lengths.
    """
    end = getattr(scheduler, "total_steps", None)
    if isinstance(end, int) and planned is not None and planned > end:
        raise JobError(
            f"torch_lr: {name} is made for {end} {unit}s, and the run has {planned}; set "
            f"total_steps = {planned}"
        )


class Followed:
    """The newest value of a published name, until somebody has looked at it.

    Attributes:
        fresh: the value, on its device; None once it was looked at.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.fresh: Any = None

    def taken(self, ctx: Context) -> float | None:
        """The value that was published since the last look; on several processes their mean.

        Every rank asks at the same places, whether it has a value or not: they wait for each other.
        """
        fresh, self.fresh = self.fresh, None
        value = None if fresh is None else one_number(f"torch_lr: metric {self.name!r}", fresh)
        if ctx.world_size == 1:
            return value
        mine = [0.0 if value is None else value, float(value is not None)]
        both = tensor(mine, dtype=float64, device=ctx.device)
        distributed.all_reduce(both)
        total, count = both.tolist()
        return total / count if count else None
