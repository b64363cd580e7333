"""MANIFEST.json: what a checkpoint is, and the size and hash of everything in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from hatbus.errors import CheckpointError
from hatbus_checkpoint import pieces

NAME: Final = "MANIFEST.json"
FORMAT: Final = 2
"""The newest that can be read."""
PLAIN: Final = 1
SPLIT: Final = 2
"""With tensors in pieces, several files of one process, which ``"split"`` names."""
SHARDED: Final = 2
"""With tensors in parts, in folders of the processes; older versions would take it for damaged."""
_LARGEST: Final = 2 << 20
"""No manifest has so many bytes (that is 15,000 files); a look at so many takes no second."""
_WORTH_THREADS: Final = 4 << 20
_FILE: Final = re.compile(r"([A-Za-z0-9_%~-][A-Za-z0-9._%~-]*/)*[A-Za-z0-9_%~-][A-Za-z0-9._%~-]*")
_WANTED: Final[dict[str, type]] = {
    "run": str,
    "lineage": int,
    "progress": dict,
    "plugins": list,
    "settings": dict,
    "metrics": dict,
    "files": dict,
    "content": str,
    "world_size": int,
}
_OF_PLUGIN: Final[dict[str, type]] = {
    "name": str,
    "class": str,
    "source": str,
    "stage": str,
    "state_version": int,
}
_OPEN: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def write(fields: Mapping[str, Any]) -> bytes:
    """The manifest as text, sealed with its own hash."""
    body = {"format": PLAIN, **fields}
    return _text({**body, "sha256": _seal(body)})


def content_hash(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One hash of all files: equal states have equal hashes, whenever they were saved."""
    lines = "".join(f"{files[name]['sha256']}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, itself verified; its files are not looked at.

    Raises:
        CheckpointError: why this is no checkpoint that can be read.
    """
    try:
        with os.fdopen(_open_file(folder, NAME), "rb") as file:
            text = file.read(_LARGEST + 1)
    except FileNotFoundError as error:
        if folder.is_symlink() and not folder.exists():
            target = f"{os.readlink(folder)!r:.200}"  # noqa: PTH115 - as it is written there
            raise CheckpointError(f"it is a link to {target}, which is not there") from error
        raise CheckpointError(f"it has no {NAME}") from error
    except OSError as error:
        raise CheckpointError(f"{NAME} cannot be read: {error.strerror or error}") from error
    if len(text) > _LARGEST:
        raise CheckpointError(f"{NAME} is larger than {_LARGEST} bytes")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{NAME} is garbled: {error!s:.100}") from error
    if not isinstance(found, dict) or type(found.get("format")) is not int:
        raise CheckpointError(f"{NAME} is garbled: it names no format")
    if found["format"] > FORMAT:
        raise CheckpointError(
            f"it has format {found['format']!r:.30}, this hatbus-checkpoint reads up to {FORMAT}; "
            "install a newer one"
        )
    if _text(found) != text:
        raise CheckpointError(f"{NAME} is garbled: it was changed after it was written")
    _check_fields(found)
    return found


def verify(folder: Path, part: slice = slice(None)) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file is what was saved.

    Args:
        folder: the checkpoint.
        part: which of its files to read, largest first, where several processes share them.

    Raises:
        CheckpointError: the first thing that is wrong.
    """
    found = read(folder)
    files: dict[str, dict[str, Any]] = found["files"]
    largest_first = sorted(files, key=lambda name: -files[name]["size"])[part]
    with ThreadPoolExecutor(2) as pool:
        large = sum(files[name]["size"] for name in largest_first) > _WORTH_THREADS
        each = pool.map if large else map
        for fault in each(lambda name: _fault(folder, name, files[name]), largest_first):
            if fault:
                raise CheckpointError(fault)
    return found


def _check_fields(found: dict[str, Any]) -> None:
    """Checks the seal, then the fields."""
    sealed = found.get("sha256")
    if sealed != _seal({k: v for k, v in found.items() if k != "sha256"}):
        raise CheckpointError(f"{NAME} is garbled: it does not match its own hash")
    for name, kind in _WANTED.items():
        if not _fits(found, {name: kind}):
            raise CheckpointError(f"{NAME} is garbled: no usable field {name!r}")
    for entry in found["plugins"]:
        if not isinstance(entry, dict) or not _fits(entry, _OF_PLUGIN):
            raise CheckpointError(f"{NAME} is garbled: no usable entry in 'plugins'")
    bests = found.get("bests", {})
    for best in (found.get("best"), *(bests.values() if isinstance(bests, dict) else [bests])):
        if best is not None and not (isinstance(best, dict) and _is_number(best.get("value"))):
            raise CheckpointError(f"{NAME} is garbled: no usable value of 'best'")
    _check_files(found)
    if not _fits(found["progress"], dict.fromkeys(("epoch", "step", "global_step"), int)):
        raise CheckpointError(f"{NAME} is garbled: it names no progress")


def _check_files(found: Mapping[str, Any]) -> None:
    for name, entry in found["files"].items():
        if not _FILE.fullmatch(name) or len(name) > 300:
            raise CheckpointError(f"{NAME} names a file outside: {name!r:.100}")
        if not isinstance(entry, dict) or not _fits(entry, {"size": int, "sha256": str}):
            raise CheckpointError(f"{NAME} is garbled: no size or sha256 of {name!r}")
    fault = pieces.fault_of(found.get("split", {}), found["files"])
    if fault:
        raise CheckpointError(f"{NAME} is garbled: {fault}")
    if found["content"] != content_hash(found["files"]):
        raise CheckpointError(f"{NAME} is garbled: the hashes of its files do not add up")


def _fits(found: Mapping[str, Any], wanted: Mapping[str, type]) -> bool:
    return all(type(found.get(name)) is kind for name, kind in wanted.items())


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _fault(folder: Path, name: str, entry: dict[str, Any]) -> str:
    """What is wrong with a file; empty if nothing is."""
    try:
        with os.fdopen(_open_file(folder, name), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry["size"]:
                return f"{name!r} has {size} bytes, not {entry['size']}"
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return f"{name!r} is damaged: its sha256 is another"
    except FileNotFoundError:
        return f"{name!r} is missing"
    except OSError as error:
        return f"{name!r} cannot be read: {error.strerror or error}"
    return ""


def _open_file(folder: Path, name: str) -> int:
    """Opens a regular file inside a folder; a link anywhere below the folder is refused."""
    for parent in _parents(folder, name):
        if not stat.S_ISDIR(os.lstat(parent).st_mode):
            raise OSError(f"{parent.name!r} is no folder")
    file = os.open(folder / name, _OPEN)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{name!r} is no regular file")
    return file


def _parents(folder: Path, name: str) -> Iterator[Path]:
    parts = name.split("/")[:-1]
    return (folder.joinpath(*parts[: i + 1]) for i in range(len(parts)))


def _text(whole: Mapping[str, Any]) -> bytes:
    return (json.dumps(whole, indent=1) + "\n").encode()


def _seal(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
