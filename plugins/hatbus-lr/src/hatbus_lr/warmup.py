"""Warmup: what the learning rate does in the first steps, the same for every schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hatbus.option_values import UNITS, number, one_of, whole

if TYPE_CHECKING:
    from hatbus_lr.plan import Plan

MODES: Final = ("linear", "constant")


@dataclass(frozen=True, slots=True)
class Warmup:
    """The options of a warmup, named as in the constructors without ``warmup_``.

    Attributes:
        by: unit of ``len``: ``"step"`` or ``"epoch"``; warmup moves every step in both.
        len: length in that unit; 0 for none.
        mode: ``"linear"`` from ``begin_lr`` up, or ``"constant"``.
        begin_lr: lr of step 0, linear only.
        lr_ratio: what warmup aims at, as a share of the group's initial lr (0 to 1).
    """

    by: str = "step"
    len: int = 0
    mode: str = "linear"
    begin_lr: float = 0.0
    lr_ratio: float = 1.0

    @classmethod
    def of(
        cls,
        by: str | None,
        len_: int | None,
        mode: str | None,
        begin_lr: float | None,
        lr_ratio: float | None,
        default_by: str = "step",
    ) -> Warmup:
        """A warmup of a constructor's options; None stands for an option's default."""
        return cls(
            default_by if by is None else by,
            0 if len_ is None else len_,
            "linear" if mode is None else mode,
            0.0 if begin_lr is None else begin_lr,
            1.0 if lr_ratio is None else lr_ratio,
        )

    def __post_init__(self) -> None:
        """Refuses values that make no warmup."""
        one_of("warmup_by", self.by, UNITS)
        whole("warmup_len", self.len, 0)
        one_of("warmup_mode", self.mode, MODES)
        number("warmup_begin_lr", self.begin_lr)
        number("warmup_lr_ratio", self.lr_ratio, 0.0, 1.0)

    def steps(self, plan: Plan, who: str) -> int:
        """Its length W in steps."""
        if self.by == "step" or self.len == 0:
            return self.len
        instead = "give warmup_len in steps, with warmup_by='step'"
        return self.len * plan.epoch_length(who, "warmup_by='epoch'", instead)
