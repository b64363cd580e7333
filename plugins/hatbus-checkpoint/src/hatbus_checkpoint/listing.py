"""What there is to know about the checkpoints in a folder, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from hatbus.errors import CheckpointError, did_you_mean
from hatbus_checkpoint import finite_file, manifest
from hatbus_checkpoint.folder import (
    MARKS,
    CheckpointFolder,
    Entry,
    entry_of,
    is_mark,
    prefixes_in,
    save_dir_in,
)


class ItsDefault:
    """Stands in a message for an option that was not given; None may be a value of its own."""

    def __repr__(self) -> str:
        return "its default"


ITS_DEFAULT: Final = ItsDefault()
_SHOWN: Final = 5
"""Names in a message; a run may hold hundreds."""


def all_of(folder: Path) -> list[Entry]:
    """Every checkpoint in a folder, of any prefix, newest first within a prefix.

    Args:
        folder: a ``save_dir``, or the folder of a run with one in it.

    Raises:
        CheckpointError: there is no such folder, or no checkpoint in it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no folder {str(folder)!r}")
    folder = save_dir_in(folder)
    folders = (CheckpointFolder(folder, prefix) for prefix in prefixes_in(folder))
    entries = [entry for one in folders for entry in one.entries()]
    if not entries:
        raise CheckpointError(
            f"no checkpoint in {str(folder)!r}; give a Checkpoint's save_dir, or its run's folder"
        )
    return entries


def one_of(folder: Path, name: str | None) -> Entry:
    """A checkpoint by name, or the newest good one; or the folder itself when it is one.

    Args:
        folder: as for ``all_of``.
        name: of a checkpoint, or ``"last"`` or ``"best"``.

    Raises:
        CheckpointError: there is none of that name, or none that is good.
    """
    if name is None and (folder / manifest.NAME).exists():
        return entry_of(folder)
    entries = all_of(folder)
    if name is not None and is_mark(name):
        return _marked(name, entries)
    if name is not None:
        known = {e.path.name: e for e in entries}
        if name not in known:
            raise CheckpointError(f"no checkpoint {name!r}{did_you_mean(name, [*MARKS, *known])}")
        return known[name]
    for entry in entries:
        if not fault_of(entry):
            return entry
    raise CheckpointError(f"no checkpoint in {str(folder)!r} is good: {fault_of(entries[0])}")


def fault_of(entry: Entry) -> str:
    """Why a checkpoint cannot be used; empty if every byte is right."""
    try:
        finite_file.verify(entry.path)
    except CheckpointError as error:
        return str(error)
    return ""


def row_of(entry: Entry, *, verified: bool) -> dict[str, Any]:
    """One checkpoint as plain data."""
    fault = fault_of(entry) if verified else entry.fault
    found = entry.manifest
    progress = found.get("progress", {})
    folder = CheckpointFolder(entry.path.parent, entry.path.name.partition("checkpoint-")[0])
    marks = [*MARKS, *(f"best-{name}" for name in found.get("bests", {}))]
    return {
        "name": entry.path.name,
        "epoch": progress.get("epoch"),
        "step": progress.get("global_step"),
        "bytes": sum(f["size"] for f in found.get("files", {}).values()),
        "saved_at": found.get("saved_at"),
        "metrics": found.get("metrics", {}),
        "best": (found.get("best") or {}).get("value"),
        "monitored": (found.get("best") or {}).get("metric"),
        "marks": [kind for kind in marks if folder.pointed(kind) == entry.path.name],
        "fault": fault,
        "verified": verified and not fault,
    }


def differences(one: Entry, other: Entry) -> list[str]:
    """One line per difference between two checkpoints."""
    lines = []
    for part in ("progress", "settings", "metrics", "versions"):
        was, now = one.manifest.get(part, {}), other.manifest.get(part, {})
        lines += [
            f"{part}.{key}: {was.get(key)!r} -> {now.get(key)!r}"
            for key in [*was, *(k for k in now if k not in was)]
            if was.get(key) != now.get(key)
        ]
    lines += lock_differences(one.manifest.get("plugins", []), other.manifest.get("plugins", []))
    was, now = one.manifest.get("files", {}), other.manifest.get("files", {})
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            kind = "changed" if name in was and name in now else "gone" if name in was else "new"
            lines.append(f"file {name}: {kind}")
    return lines


def lock_differences(saved: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    """One line per difference between two plugin locks."""
    before, after = ({e["name"]: e for e in lock} for lock in (saved, now))
    lines = [f"plugin {n!r} was not there and starts fresh" for n in after if n not in before]
    lines += [f"plugin {n!r} is not there any more" for n in before if n not in after]
    for name in before.keys() & after.keys():
        was, is_ = before[name], after[name]
        lines += [f"plugin {name!r}: {what}" for what in _changes_of(was, is_)]
    order = [n for n in before if n in after], [n for n in after if n in before]
    if order[0] != order[1]:
        lines.append(f"the order was {', '.join(order[0])} and is {', '.join(order[1])}")
    return sorted(lines)


def _marked(kind: str, entries: list[Entry]) -> Entry:
    found = [e for e in entries if kind in row_of(e, verified=False)["marks"]]
    if len(found) == 1:
        return found[0]
    marks = sorted({m for e in entries for m in row_of(e, verified=False)["marks"]})
    if not found and marks and kind not in MARKS:
        raise CheckpointError(f"no checkpoint is marked {kind!r}{did_you_mean(kind, marks)}")
    several = found or entries
    names = ", ".join(repr(e.path.name) for e in several[:_SHOWN])
    more = f" and {len(several) - _SHOWN} more" if len(several) > _SHOWN else ""
    raise CheckpointError(
        f"{len(found) or 'no'} checkpoints are marked {kind!r}; give one by its name: {names}{more}"
    )


def _changes_of(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is different about one plugin; options are compared where both runs had a job."""
    pairs = {k: (was.get(k), now.get(k)) for k in ("class", "source", "stage", "state_version")}
    before, after = was.get("options"), now.get("options")
    if isinstance(before, dict) and isinstance(after, dict):
        pairs |= {
            f"option {k!r}": (before.get(k, ITS_DEFAULT), after.get(k, ITS_DEFAULT))
            for k in {**before, **after}
        }
    return [f"{k}: {a!r:.99} -> {b!r:.99}" for k, (a, b) in pairs.items() if a != b]
