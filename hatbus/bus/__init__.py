"""The plugins of one run: registration, order, filters, frozen dispatch, and who is to blame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.bus.moments import Moments, TaskScope
    from hatbus.bus.registration import default_name
    from hatbus.bus.states import state_version

__all__ = ["Moments", "TaskScope", "default_name", "state_version"]

__getattr__ = lazily(
    __name__,
    default_name="registration",
    Moments="moments",
    state_version="states",
    TaskScope="moments",
)
