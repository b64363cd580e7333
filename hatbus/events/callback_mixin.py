"""``CallbackMixin``: the base class of HAT's callbacks; a subclass is a plugin as it stands.

Source: ``hat.callbacks.CallbackMixin``. Methods need no ``@hookimpl``; an overridden one takes the
arguments it names, and ``**kwargs`` gives it all others.
"""

from __future__ import annotations

from typing import Any


class CallbackMixin:
    """Base class for callbacks written as in HAT; override any of its methods."""

    def on_loop_begin(self, **kwargs: Any) -> None:
        """The run is about to start."""

    def on_loop_end(self, **kwargs: Any) -> None:
        """The run is over."""

    def on_epoch_begin(self, **kwargs: Any) -> None:
        """An epoch is about to start."""

    def on_epoch_end(self, **kwargs: Any) -> None:
        """An epoch is over."""

    def on_step_begin(self, **kwargs: Any) -> None:
        """A step is about to start."""

    def on_step_end(self, **kwargs: Any) -> None:
        """A step is over."""

    def on_batch_begin(self, **kwargs: Any) -> None:
        """A batch is about to be run; there may be several in a step of many tasks."""

    def on_batch_end(self, **kwargs: Any) -> None:
        """A batch is over; there may be several in a step of many tasks."""

    def on_forward_begin(self, **kwargs: Any) -> None:
        """The forward pass is about to start."""

    def on_forward_end(self, **kwargs: Any) -> None:
        """The forward pass is over."""

    def on_backward_begin(self, **kwargs: Any) -> None:
        """The backward pass is about to start."""

    def on_backward_end(self, **kwargs: Any) -> None:
        """The backward pass of one task's batch is over."""

    def on_optimizer_step_begin(self, **kwargs: Any) -> None:
        """The optimizer's update is about to be made."""

    def on_optimizer_step_end(self, **kwargs: Any) -> None:
        """The optimizer's update was made."""
