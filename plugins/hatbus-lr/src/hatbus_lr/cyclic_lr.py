"""Cycles: cosine up and down, several times in a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hatbus.errors import JobError
from hatbus.option_values import number, whole
from hatbus_lr.annealing import falling
from hatbus_lr.updater import Line, Updater

if TYPE_CHECKING:
    from hatbus_lr.plan import Plan


class CyclicLrUpdater(Updater):
    """Half cosines up and down, ``cyclic_times`` times over the run.

    With T the run's steps, P = ``T // cyclic_times`` and U = ``int(step_ratio_up * P)``, in each
    cycle of P steps::

        from initial to initial * target_ratio[0] over U steps,
        then to initial * target_ratio[1] over P - U steps

    Steps that are left over when T is no multiple of P stay at ``initial * target_ratio[1]``.
    Source: Smith, Cyclical Learning Rates; ``hat.callbacks.CyclicLrUpdater``.

    Args:
        target_ratio: highest and lowest lr as multiples of the initial lr.
        cyclic_times: cycles in the run.
        step_ratio_up: share of a cycle that goes up, 0 to 1.
        step_log_interval: log every so many steps; None for never.
        field: the number of the param groups that is set: ``"lr"``, ``"weight_decay"``,
            ``"momentum"``, ``"beta1"``, ...

    Raises:
        JobError: a value that is not accepted; at loop begin: more cycles than steps.
    """

    def __init__(
        self,
        target_ratio: tuple[float, float] = (10, 0.0001),
        cyclic_times: int | None = 1,
        step_ratio_up: float | None = 0.4,
        step_log_interval: int | None = 1,
        *,
        field: str = "lr",
    ) -> None:
        given: Any = target_ratio
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise JobError(
                f"target_ratio is {target_ratio!r}; accepted: two numbers, highest and lowest"
            )
        for ratio in target_ratio:
            number("target_ratio", ratio)
        cyclic_times = 1 if cyclic_times is None else cyclic_times
        step_ratio_up = 0.4 if step_ratio_up is None else step_ratio_up
        whole("cyclic_times", cyclic_times, 1)
        number("step_ratio_up", step_ratio_up, 0.0, 1.0)
        super().__init__(step_log_interval=step_log_interval, field=field)
        self.target_ratio = (float(target_ratio[0]), float(target_ratio[1]))
        self.cyclic_times, self.step_ratio_up = cyclic_times, step_ratio_up
        self._period = self._up = self._end = 0

    def prepare(self, plan: Plan) -> None:
        """Divides the run into cycles."""
        total = plan.total_steps("CyclicLrUpdater", "plan the run by num_steps")
        if self.cyclic_times > total:
            raise JobError(
                f"cyclic_times is {self.cyclic_times} and the run has {total} steps; "
                f"accepted: 1 to {total}"
            )
        self._period = total // self.cyclic_times
        self._up = int(self.step_ratio_up * self._period)
        self._end = self._period * self.cyclic_times

    def line(self, num_update: int) -> Line:
        """The cycle at an absolute step."""
        highest, lowest = self.target_ratio
        if num_update >= self._end:
            if not self._end:
                raise JobError("CyclicLrUpdater: the run's length is not known before it starts")
            return lowest, 0.0
        up, index = self._up, num_update % self._period
        if index < up:
            share = falling(index / up)
            return share + highest * (1.0 - share), 0.0
        share = falling((index - up) / (self._period - up))
        return highest * share + lowest * (1.0 - share), 0.0
