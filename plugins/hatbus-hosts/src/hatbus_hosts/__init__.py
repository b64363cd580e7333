"""Plugins of hatbus in other trainers' loops, and other trainers' callbacks in hatbus.

Each name imports the library that it is made for, when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_hosts.accelerate_host import AccelerateHost
    from hatbus_hosts.host import Host
    from hatbus_hosts.ignite_host import IgniteHost, attach_ignite
    from hatbus_hosts.lightning_callback import LightningCallback
    from hatbus_hosts.lightning_host import LightningHost
    from hatbus_hosts.needs import Capabilities, rows
    from hatbus_hosts.orchard_hooks import OrchardHooks
    from hatbus_hosts.transformers_callback import TransformersCallback
    from hatbus_hosts.transformers_host import TransformersHost

__all__ = [
    "AccelerateHost",
    "Capabilities",
    "Host",
    "IgniteHost",
    "LightningCallback",
    "LightningHost",
    "OrchardHooks",
    "TransformersCallback",
    "TransformersHost",
    "attach_ignite",
    "rows",
]

__getattr__ = lazily(
    __name__,
    AccelerateHost="accelerate_host",
    Host="host",
    IgniteHost="ignite_host",
    attach_ignite="ignite_host",
    LightningCallback="lightning_callback",
    LightningHost="lightning_host",
    Capabilities="needs",
    rows="needs",
    OrchardHooks="orchard_hooks",
    TransformersCallback="transformers_callback",
    TransformersHost="transformers_host",
)
