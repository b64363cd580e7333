"""What differs between runs: in their settings, as their ``job.json`` has them, and in metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from hatbus.runs.listing import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hatbus.runs.listing import Run

_NOT_SETTINGS: Final = ("hatbus.", "run.run_dir", "run.name", "run.resume")


def differences(
    runs: Sequence[Run],
) -> tuple[dict[str, list[Any]], dict[str, dict[str, list[float | None]]]]:
    """What differs.

    Returns:
        Of each setting that is not the same in all runs its value in each, None where there is
        none; and of each metric the ``best`` and ``last`` values.
    """
    found = [settings_of(run) for run in runs]
    names = dict.fromkeys(name for one in found for name in one)
    settings = {name: [one.get(name) for one in found] for name in names}
    settings = {name: row for name, row in settings.items() if any(v != row[0] for v in row)}
    published = dict.fromkeys(name for run in runs for name in run.summary.metrics)
    metrics = {
        name: {kind: [plain(run.value(name, kind)) for run in runs] for kind in ("best", "last")}
        for name in published
    }
    return settings, metrics


def settings_of(run: Run) -> dict[str, Any]:
    """A run's settings, by dotted name; of a script its arguments."""
    try:
        tables = json.loads((run.folder / "job.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {"arguments": " ".join(run.summary.changes), "script": run.summary.job}
    return {name: value for name, value in _flat(tables, "") if not name.startswith(_NOT_SETTINGS)}


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name.removeprefix("plugins."), value
