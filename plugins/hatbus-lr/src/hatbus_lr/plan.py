"""How long a run is, as far as it is known before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from hatbus.data import Steps
from hatbus.errors import JobError

if TYPE_CHECKING:
    from hatbus.loop import Context


class Plan(NamedTuple):
    """Planned epochs or steps of a run, and the steps of an epoch (None: not known)."""

    num_epochs: int | None
    num_steps: int | None
    steps_per_epoch: int | None

    @classmethod
    def read(
        cls, ctx: Context | None, data_loader: Any, num_epochs: int | None, num_steps: int | None
    ) -> Plan:
        """The plan of a run; without its context the loader's length counts as it is."""
        if ctx is not None:
            return cls(num_epochs, num_steps, ctx.steps_per_epoch)
        length = None if data_loader is None else Steps(data_loader).steps_per_epoch
        return cls(num_epochs, num_steps, length)

    def epoch_length(self, who: str, why: str, instead: str) -> int:
        """Steps of an epoch.

        Raises:
            JobError: a loader has no length; names the option to set instead.
        """
        if self.steps_per_epoch is None:
            raise JobError(
                f"{who}: {why} needs the number of steps in an epoch, and a loader has no length; "
                f"{instead}"
            )
        return self.steps_per_epoch

    def total_steps(self, who: str, instead: str) -> int:
        """Steps of the whole run.

        Raises:
            JobError: nobody can know; names the option to set instead.
        """
        if self.num_steps is not None:
            return self.num_steps
        return self.epochs(who) * self.epoch_length(who, "its length", instead)

    def epochs(self, who: str) -> int:
        """Epochs of the whole run, a last one that is cut short included.

        Raises:
            JobError: the run is planned in steps and a loader has no length.
        """
        if self.num_epochs is not None:
            return self.num_epochs
        if self.num_steps is None:
            raise JobError(f"{who}: the run has no plan; give it num_epochs or num_steps")
        length = self.epoch_length(who, "its length", "plan the run by num_epochs instead")
        return -(-self.num_steps // length)
