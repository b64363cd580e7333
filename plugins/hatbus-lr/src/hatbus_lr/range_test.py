"""``find_lr``: the learning rate range test.

The learning rate grows from step to step, and the loss says where training begins and where it
breaks. Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3;
here the rate grows exponentially, as a rate is chosen by its order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus import hookimpl
from hatbus.errors import JobError, NonFiniteError
from hatbus.insight import draw_curves, show_curves
from hatbus.option_values import number, whole

if TYPE_CHECKING:
    from rich.console import Console

    from hatbus import Context, Trainer

LOWEST: Final = 1e-7
HIGHEST: Final = 10.0
NUM_STEPS: Final = 100
_DIVERGED: Final = 4.0
"""Times the least loss: beyond it nothing is to be learnt any more."""
_MEMORY: Final = 0.8
"""Of the running mean that tells when the loss has grown too much."""
_BELOW: Final = 3.0
_FALL: Final = 0.02
"""Part of the first loss by which it has to fall for a suggestion."""


@dataclass
class LrCurve:
    """What the range test found.

    Attributes:
        rates: the learning rate of each step, that of the first param group.
        losses: the sum of the losses of each step, before its update.
    """

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def smooth(self) -> list[float]:
        """The losses, each the mean over its neighbours: a tenth of all, on both sides alike."""
        reach, found = max(1, len(self.losses) // 20), []
        for at in range(len(self.losses)):
            near = min(reach, at, len(self.losses) - 1 - at)
            around = self.losses[at - near : at + near + 1]
            found.append(sum(around) / len(around))
        return found

    @property
    def rate_of_least(self) -> float:
        """The rate with the least loss; beyond it training gets worse, then breaks."""
        smooth = self.smooth
        return self.rates[smooth.index(min(smooth))]

    @property
    def suggestion(self) -> float | None:
        """A third of the rate with the least loss; None where the loss falls nowhere.

        Where it falls fastest, which others suggest, is the lower the longer the test is.
        """
        smooth = self.smooth
        if smooth[0] - min(smooth) < _FALL * abs(smooth[0]):
            return None
        return max(self.rate_of_least / _BELOW, self.rates[0])

    @property
    def is_open(self) -> bool:
        """Whether the loss still falls at the last rate, so that higher ones are to be tried."""
        return self.rate_of_least == self.rates[-1]

    def show(self, console: Console | None = None) -> None:
        """Prints the curve."""
        show_curves(self._curves(), "loss", console, x="lr", logarithmic=True)

    def draw(self, path: Path | str) -> None:
        """Writes the curve as a picture, by matplotlib.

        Raises:
            JobError: matplotlib is missing, or writes no such file.
            SaveError: it cannot be written.
        """
        draw_curves(self._curves(), Path(path), "loss", x="lr", logarithmic=True)

    def _curves(self) -> dict[str, list[tuple[float, float]]]:
        smooth = self.smooth
        found = {"loss": list(zip(self.rates, smooth, strict=True))}
        rate = self.suggestion
        if rate is not None:
            found[f"suggestion {rate:.2g}"] = [(rate, min(smooth)), (rate, max(smooth))]
        return found


def find_lr(
    trainer: Trainer,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    num_steps: int = NUM_STEPS,
) -> LrCurve:
    """Tries growing learning rates, and leaves the trainer as it was, bit for bit.

    It ends early when the loss has grown to four times the least. Schedules take no part; param
    groups keep the proportions of their learning rates. See ``Trainer.rehearse``.

    Args:
        trainer: with all that trains.
        lowest: the first rate.
        highest: the last rate.
        num_steps: how many steps.

    Raises:
        JobError: a range that is none, or an optimizer without a learning rate.
        NonFiniteError: the loss is not finite in the very first step.
    """
    check_range(lowest, highest, num_steps)
    groups = trainer.ctx.optimizer.param_groups if trainer.ctx.optimizer is not None else []
    if not groups or any("lr" not in group for group in groups):
        raise JobError("the optimizer has no learning rate ('lr' in its param groups) to be found")
    test = RangeTest(lowest, highest, num_steps)
    trainer.rehearse(num_steps, {"range_test": test})
    return test.curve


def check_range(lowest: Any, highest: Any, num_steps: Any) -> None:
    """Refuses what is no range.

    Raises:
        JobError: what was given, and what is accepted.
    """
    number("lowest", lowest, above=True)
    number("highest", highest, above=True)
    whole("num_steps", num_steps, 10)
    if lowest >= highest:
        raise JobError(
            f"the range of learning rates is {lowest:g} to {highest:g}; accepted: the lower end "
            "first"
        )


class RangeTest:
    """The plugin that sets the rates and notes the losses.

    Args:
        lowest: the first rate.
        highest: the last rate.
        num_steps: how many steps.
    """

    def __init__(self, lowest: float, highest: float, num_steps: int) -> None:
        self.curve = LrCurve()
        self._lowest, self._ratio = lowest, highest / lowest
        self._last, self._mean, self._least = num_steps - 1, 0.0, math.inf
        self._shares: list[float] = []

    @hookimpl
    def on_loop_begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Notes the proportions of the groups' rates, as they are before any schedule."""
        rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self._shares = [rate / rates[0] if rates[0] else 1.0 for rate in rates]

    @hookimpl
    def on_step_begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Sets the step's rates."""
        rate = self._lowest * self._ratio ** (len(self.curve.rates) / self._last)
        for group, share in zip(optimizer.param_groups, self._shares, strict=True):
            own = rate * share
            is_tensor = isinstance(group["lr"], torch.Tensor)
            group["lr"] = torch.full_like(group["lr"], own) if is_tensor else own
        self.curve.rates.append(rate)

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        """Notes the step's loss; ends the test where it has grown too much.

        Raises:
            NonFiniteError: it is not finite in the very first step.
        """
        if ctx.exception is not None:
            return
        rates, losses = self.curve.rates, self.curve.losses
        found = float(torch.stack([one.detach().float() for one in ctx.losses.values()]).sum())
        if not math.isfinite(found):
            if not losses:
                raise NonFiniteError(
                    f"the loss is {found} in the first step already, at a learning rate of "
                    f"{rates[0]:g}; look at the data and the loss, not at the rate"
                )
            rates.pop()
            ctx.control.stop("run", "the loss is not finite")
            return
        losses.append(found)
        self._mean = _MEMORY * self._mean + (1 - _MEMORY) * found
        mean = self._mean / (1 - _MEMORY ** len(losses))
        self._least = min(self._least, mean)
        if mean > max(_DIVERGED * self._least, losses[0]):
            ctx.control.stop("run", "the loss grows")
