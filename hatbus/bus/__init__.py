"""The plugins of one run: who may register, in what order they are called, who is to blame.

``hatbus.Bus`` is the whole of it for most. Public beside it: what a bus says about its plugins, and
the parts that a loop of your own puts on one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.bus.blame import acquit, caller_name
    from hatbus.bus.bus import Emitter
    from hatbus.bus.member import Member
    from hatbus.bus.moments import Moments, TaskScope
    from hatbus.bus.order import Placed
    from hatbus.bus.published import one_number
    from hatbus.bus.registration import default_name
    from hatbus.bus.states import state_version

__all__ = [
    "Emitter",
    "Member",
    "Moments",
    "Placed",
    "TaskScope",
    "acquit",
    "caller_name",
    "default_name",
    "one_number",
    "state_version",
]

__getattr__ = lazily(
    __name__,
    acquit="blame",
    caller_name="blame",
    Emitter="bus",
    Member="member",
    Moments="moments",
    TaskScope="moments",
    Placed="order",
    one_number="published",
    default_name="registration",
    state_version="states",
)
