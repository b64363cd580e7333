"""What other trainers call the events of hatbus, so that a message can name the one that is meant.

Sources: the callback classes of Lightning 2 and Transformers 4, the hooks of MMEngine 0.10; and
``start`` for ``begin``. ``docs/coming-from.md`` says what is different about them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hatbus.errors import did_you_mean
from hatbus.events.training import EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

FOREIGN_NAMES: Final = {
    "on_fit_start": "on_loop_begin",
    "on_fit_begin": "on_loop_begin",
    "on_train_start": "on_loop_begin",
    "on_train_begin": "on_loop_begin",
    "on_loop_start": "on_loop_begin",
    "before_run": "on_loop_begin",
    "before_train": "on_loop_begin",
    "on_train_epoch_start": "on_epoch_begin",
    "on_train_epoch_begin": "on_epoch_begin",
    "on_epoch_start": "on_epoch_begin",
    "before_train_epoch": "on_epoch_begin",
    "on_before_zero_grad": "on_step_begin",
    "on_step_start": "on_step_begin",
    "on_train_batch_start": "on_batch_begin",
    "on_train_batch_begin": "on_batch_begin",
    "on_batch_start": "on_batch_begin",
    "before_train_iter": "on_batch_begin",
    "on_forward_start": "on_forward_begin",
    "on_backward_start": "on_backward_begin",
    "on_before_backward": "on_backward_begin",
    "on_after_backward": "on_backward_end",
    "on_train_batch_end": "on_batch_end",
    "on_substep_end": "on_batch_end",
    "after_train_iter": "on_batch_end",
    "on_before_optimizer_step": "on_optimizer_step_begin",
    "on_pre_optimizer_step": "on_optimizer_step_begin",
    "on_optimizer_step_start": "on_optimizer_step_begin",
    "on_optimizer_step": "on_optimizer_step_end",
    "on_train_epoch_end": "on_epoch_end",
    "after_train_epoch": "on_epoch_end",
    "on_validation_start": "on_validation_begin",
    "before_val": "on_validation_begin",
    "on_evaluate": "on_validation_end",
    "after_val": "on_validation_end",
    "on_save": "on_checkpoint_saved",
    "on_keyboard_interrupt": "on_exception",
    "on_train_end": "on_loop_end",
    "on_fit_end": "on_loop_end",
    "after_train": "on_loop_end",
    "after_run": "on_loop_end",
}
"""Another trainer's name to the event that is nearest."""


def meant(event: str, known: Iterable[str] = EVENTS) -> str:
    """End of a message about an unknown event: the one that is meant, as far as can be told."""
    foreign = FOREIGN_NAMES.get(event)
    return f"; did you mean {foreign!r}?" if foreign else did_you_mean(event, known)
