"""Decay by a factor at given steps or epochs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from hatbus.errors import JobError
from hatbus.option_values import number
from hatbus_lr.updater import Line, Updater
from hatbus_lr.warmup import Warmup


def step_decay(factor: float, ids: Sequence[int], index: int) -> float:
    """``factor ** (number of ids <= index)``; ``ids`` ascend."""
    return factor ** bisect_right(ids, index)


class StepDecayLrUpdater(Updater):
    """Multiplies the lr of every param group by a factor at each of the given epochs or steps.

    ::

        lr = initial * lr_decay_factor ** (number of lr_decay_id <= index)

    The ids are absolute: warmup counts. Source: ``hat.callbacks.StepDecayLrUpdater``; without
    warmup the curve of ``torch.optim.lr_scheduler.MultiStepLR``.

    Args:
        update_by: unit of ``lr_decay_id``: ``"epoch"`` or ``"step"``.
        warmup_by: unit of ``warmup_len``: ``"step"`` or ``"epoch"``; warmup moves every step.
        warmup_len: length of the warmup; 0 for none.
        warmup_mode: ``"linear"`` or ``"constant"``.
        warmup_begin_lr: lr of step 0, linear only.
        warmup_lr_ratio: what warmup aims at, as a share of the initial lr, 0 to 1.
        step_log_interval: log every so many steps (with ``warmup_by="epoch"``, the default here,
            at each epoch's begin); None for never.
        lr_decay_id: the epochs or steps, ascending; None for no decay.
        lr_decay_factor: 0 to 1, 0 excluded.
        field: the number of the param groups that is set: ``"lr"``, ``"weight_decay"``,
            ``"momentum"``, ``"beta1"``, ...

    Raises:
        JobError: a value that is not accepted.
    """

    def __init__(
        self,
        update_by: Literal["step", "epoch"] | None = "epoch",
        warmup_by: Literal["step", "epoch"] | None = "epoch",
        warmup_len: int | None = 0,
        warmup_mode: Literal["linear", "constant"] | None = "linear",
        warmup_begin_lr: float | None = 0.0,
        warmup_lr_ratio: float | None = 1.0,
        step_log_interval: int | None = 1,
        lr_decay_id: list[int] | None = None,
        lr_decay_factor: float = 0.1,
        *,
        field: str = "lr",
    ) -> None:
        number("lr_decay_factor", lr_decay_factor, 0.0, 1.0, above=True)
        super().__init__(
            update_by=update_by or "epoch",
            warmup=Warmup.of(
                warmup_by, warmup_len, warmup_mode, warmup_begin_lr, warmup_lr_ratio, "epoch"
            ),
            step_log_interval=step_log_interval,
            field=field,
        )
        self.lr_decay_id = ascending_ids(lr_decay_id)
        self.lr_decay_factor = lr_decay_factor

    def line(self, num_update: int) -> Line:
        """The decayed value at an absolute epoch or step."""
        return step_decay(self.lr_decay_factor, self.lr_decay_id, num_update), 0.0


def ascending_ids(ids: Sequence[int] | None) -> tuple[int, ...]:
    """The ids as a tuple.

    Raises:
        JobError: they are no ascending whole numbers from 0 on.
    """
    found = tuple(ids or ()) if ids is None or isinstance(ids, (list, tuple)) else (-1,)
    whole_numbers = all(type(index) is int and index >= 0 for index in found)
    if not whole_numbers or any(a >= b for a, b in pairwise(found)):
        raise JobError(
            f"lr_decay_id is {ids!r}; accepted: a list of ascending whole numbers from 0 on"
        )
    return found
