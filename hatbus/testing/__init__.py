"""What plugin authors test with: a contract, a recorded event log, tiny runs, throw-away plugins.

``pytest_plugins = ["hatbus.testing"]`` in a test file or a top ``conftest.py``, or ``-p
hatbus.testing.plugin`` on pytest's command line, adds the fixtures of ``hatbus.testing.plugin``.
The rest is imported by name and needs no pytest. (PYTEST_DONT_REWRITE: there are no asserts here.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus.testing.contract import PluginContract
    from hatbus.testing.event_log import EventLog
    from hatbus.testing.failures import Failure, failing
    from hatbus.testing.occasions import Occasions
    from hatbus.testing.project import PluginProject
    from hatbus.testing.reads import Reads
    from hatbus.testing.tiny import TinyNet, batches, tiny_parts, tiny_trainer
    from hatbus.testing.tiny_job import TinyJob
    from hatbus.testing.verdict import ContractFailure

__all__ = [
    "ContractFailure",
    "EventLog",
    "Failure",
    "Occasions",
    "PluginContract",
    "PluginProject",
    "Reads",
    "TinyJob",
    "TinyNet",
    "batches",
    "failing",
    "tiny_parts",
    "tiny_trainer",
]

pytest_plugins: Final = ["hatbus.testing.plugin"]
"""pytest reads this when it is told of this package; importing the package alone does nothing."""

__getattr__ = lazily(
    __name__,
    ContractFailure="verdict",
    EventLog="event_log",
    Failure="failures",
    Occasions="occasions",
    PluginContract="contract",
    PluginProject="project",
    Reads="reads",
    TinyJob="tiny_job",
    TinyNet="tiny",
    batches="tiny",
    failing="failures",
    tiny_parts="tiny",
    tiny_trainer="tiny",
)
