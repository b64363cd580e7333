"""``hatbus checkpoints DIR``: lists, shows, verifies and compares checkpoints; without torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatbus.errors import CheckpointError
from hatbus_checkpoint import listing

if TYPE_CHECKING:
    from collections.abc import Sequence

_WHAT = ("list", "show", "verify", "diff")


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "hatbus checkpoints", description=checkpoints.__doc__, allow_abbrev=False
    )
    parser.add_argument("dir", metavar="DIR", help="a folder of checkpoints (save_dir) or of a run")
    parser.add_argument(
        "what", nargs="?", choices=_WHAT, default="list", help="what to do (default: list)"
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="show, verify: one; diff: two checkpoints"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(words)


def checkpoints(words: Sequence[str]) -> int:
    """List, show, verify and compare checkpoints."""
    args = _arguments(words)
    folder = Path(args.dir)
    if args.what == "diff":
        return show_difference(folder, args.names)
    if args.what == "show":
        entry = listing.one_of(folder, args.names[0] if args.names else None)
        show(entry, listing.row_of(entry, verified=True), as_json=args.json)
        return 0
    entries = [listing.one_of(folder, n) for n in args.names] or listing.all_of(folder)
    rows = [listing.row_of(e, verified=args.what == "verify") for e in entries]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        show_table(rows)
    damaged = args.what == "verify" and any(row["fault"] for row in rows)
    return CheckpointError.exit_code if damaged else 0


def show_table(rows: list[dict[str, Any]]) -> None:
    """One line per checkpoint."""
    monitored = next((row["monitored"] for row in rows if row["monitored"]), "")
    head = ["name", "epoch", "step", "size", monitored, "state"]
    lines = [head, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for name, *numbers, state in lines:
        aligned = [f"{text:>{w}}" for text, w in zip(numbers, widths[1:], strict=False) if w]
        print("  ".join([f"{name:<{widths[0]}}", *aligned, state]).rstrip())


def cells(row: dict[str, Any]) -> list[str]:
    """What the table says of a checkpoint."""
    epoch, step = ("?" if row[k] is None else str(row[k]) for k in ("epoch", "step"))
    value = "" if row["best"] is None else f"{row['best']:.6g}"
    good = ["verified"] if row["verified"] else []
    state = row["fault"] or ", ".join([*row["marks"], *good])
    return [row["name"], epoch, step, size(row["bytes"]), value, state]


def show(entry: Any, row: dict[str, Any], *, as_json: bool) -> None:
    """All that is known about one checkpoint."""
    if as_json:
        print(json.dumps({**row, "manifest": entry.manifest}, indent=2))
        return
    found = entry.manifest
    lines = [f"{row['name']}: {row['fault'] or 'verified'}"]
    lines += [
        f"  epoch {row['epoch']}, step {row['step']}, {size(row['bytes'])}, {row['saved_at']}"
    ]
    lines += [f"  {k}: {v}" for k, v in found.get("settings", {}).items() if v is not None]
    lines += ["metrics:", *(f"  {k}: {v}" for k, v in row["metrics"].items())]
    lines += ["plugins:"]
    lines += [f"  {p['name']:<20}{p['source']:<28}{p['stage']}" for p in found.get("plugins", [])]
    lines += ["files:"]
    lines += [f"  {n:<32}{size(f['size']):>9}" for n, f in found.get("files", {}).items()]
    print("\n".join(lines))


def show_difference(folder: Path, names: list[str]) -> int:
    """What differs between two checkpoints.

    Raises:
        CheckpointError: there are not two names.
    """
    if len(names) != 2:
        raise CheckpointError(f"diff compares two checkpoints, {len(names)} given")
    lines = listing.differences(*(listing.one_of(folder, name) for name in names))
    print("\n".join(lines) or "no difference")
    return 0


def size(count: int) -> str:
    """Bytes for people."""
    units = ("B", "KiB", "MiB", "GiB")
    power = next((i for i in range(3) if count < 1024 ** (i + 1)), 3)
    return f"{count / 1024**power:.{1 if power else 0}f} {units[power]}"
