"""hatbus plugins that show what a run is doing: metrics, statistics, progress, logs, guards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatbus.lazily import lazily

if TYPE_CHECKING:
    from hatbus_monitor.csv_log import CsvLog
    from hatbus_monitor.grad_monitor import GradMonitor
    from hatbus_monitor.jsonl_log import JsonlLog
    from hatbus_monitor.metric_updater import MetricUpdater
    from hatbus_monitor.nan_guard import NanGuard
    from hatbus_monitor.progress import Progress
    from hatbus_monitor.stats_monitor import StatsMonitor

__all__ = [
    "CsvLog",
    "GradMonitor",
    "JsonlLog",
    "MetricUpdater",
    "NanGuard",
    "Progress",
    "StatsMonitor",
]

__getattr__ = lazily(
    __name__,
    CsvLog="csv_log",
    GradMonitor="grad_monitor",
    JsonlLog="jsonl_log",
    MetricUpdater="metric_updater",
    NanGuard="nan_guard",
    Progress="progress",
    StatsMonitor="stats_monitor",
)
