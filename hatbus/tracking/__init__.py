"""Trackers: plugins that deliver what a run publishes to a service, and never stop a training.

Public: the base of such a plugin, what it delivers, the service that it delivers to, and keeping
secrets out of what is written and said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.tracking.secret import redacted, refuse_credentials, without_secrets
    from hatbus.tracking.service import Described, Row, Service, client_module
    from hatbus.tracking.tracker import Tracker

__all__ = [
    "Described",
    "Row",
    "Service",
    "Tracker",
    "client_module",
    "redacted",
    "refuse_credentials",
    "without_secrets",
]

__getattr__ = lazily(
    __name__,
    Described="service",
    Row="service",
    Service="service",
    Tracker="tracker",
    client_module="service",
    redacted="secret",
    refuse_credentials="secret",
    without_secrets="secret",
)
