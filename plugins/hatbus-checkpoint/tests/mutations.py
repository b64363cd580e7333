"""Ways in which a checkpoint goes bad, and what a run makes of one.

``DAMAGES`` change files and leave the manifest as it is: none may ever be accepted. ``FORGERIES``
change what is inside and seal the manifest anew, as a bug or somebody malicious might: whatever
they say, reading them runs nothing and ends in a ``CheckpointError`` or in a loaded run.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from runs import trainer_of

from hatbus.errors import CheckpointError
from hatbus_checkpoint import manifest
from hatbus_checkpoint.folder import Entry
from hatbus_checkpoint.restore import ClassSource, Saved

Damage = Callable[[Path, random.Random], None]
LONGEST = 5.0
"""Seconds of work that a look at a bad checkpoint may take; what hangs meets pytest's own limit."""


def files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


def bytewise(change: Callable[[bytes, random.Random], bytes]) -> Damage:
    """Changes one file's bytes; tries again until they are other ones."""

    def damage(path: Path, chance: random.Random) -> None:
        while True:
            file = chance.choice(files_of(path))
            before = file.read_bytes()
            after = change(before, chance)
            if after != before:
                file.write_bytes(after)
                return

    return damage


def flipped(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def zeroed(data: bytes, chance: random.Random) -> bytes:
    low, high = sorted((chance.randrange(len(data)), chance.randrange(len(data) + 1)))
    return data[:low] + bytes(high - low) + data[high:]


def moved(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[at:] + data[:at]


def inserted(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at:]


def removed(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + data[at + chance.randrange(1, 9) :]


def overwritten(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    new = chance.randbytes(min(512, len(data) - at))
    return data[:at] + new + data[at + len(new) :]


def other_number(data: bytes, chance: random.Random) -> bytes:
    digits = [i for i, c in enumerate(data) if 48 <= c <= 57]
    if not digits:
        return data
    at = chance.choice(digits)
    return data[:at] + bytes([48 + (data[at] - 47) % 10]) + data[at + 1 :]


def replaced(make: Callable[[Path], None]) -> Damage:
    """Puts something else in a file's place."""

    def damage(path: Path, chance: random.Random) -> None:
        file = chance.choice(files_of(path))
        file.unlink()
        make(file)

    return damage


def swapped(path: Path, chance: random.Random) -> None:
    one, other = chance.sample(files_of(path), 2)
    before = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(before)


def renamed(path: Path, chance: random.Random) -> None:
    file = chance.choice(files_of(path))
    file.rename(file.with_name(file.name + chance.choice("~.x_")))


def of_another(path: Path, chance: random.Random) -> None:
    """A file of another checkpoint of the run, of the same name; ``other`` lies beside."""
    other = path.with_name("other")
    names = [f.relative_to(path) for f in files_of(path)]
    differ = [n for n in names if (other / n).read_bytes() != (path / n).read_bytes()]
    name = chance.choice(differ)
    shutil.copyfile(other / name, path / name)


def in_manifest(change: Callable[[dict[str, Any], random.Random], None]) -> Damage:
    """Changes the manifest, without a new seal."""

    def damage(path: Path, chance: random.Random) -> None:
        file = path / manifest.NAME
        whole = json.loads(file.read_bytes())
        change(whole, chance)
        file.write_text(json.dumps(whole, indent=1) + "\n")

    return damage


def other_hash(whole: dict[str, Any], chance: random.Random) -> None:
    chance.choice(list(whole["files"].values()))["sha256"] = "0" * 64


def file_left_out(whole: dict[str, Any], chance: random.Random) -> None:
    del whole["files"][chance.choice(list(whole["files"]))]


def key_left_out(whole: dict[str, Any], chance: random.Random) -> None:
    del whole[chance.choice(list(whole))]


def later(whole: dict[str, Any], chance: random.Random) -> None:
    whole["progress"]["global_step"] += 1


DAMAGES: dict[str, Damage] = {
    "bit flipped": bytewise(flipped),
    "zeroed": bytewise(zeroed),
    "rotated": bytewise(moved),
    "bytes inserted": bytewise(inserted),
    "bytes removed": bytewise(removed),
    "overwritten": bytewise(overwritten),
    "cut": bytewise(lambda d, c: d[: c.randrange(len(d))]),
    "empty": bytewise(lambda d, c: b""),
    "extended": bytewise(lambda d, c: d + c.randbytes(c.randrange(1, 4096))),
    "doubled": bytewise(lambda d, c: d + d),
    "reversed": bytewise(lambda d, c: d[::-1]),
    "other number": bytewise(other_number),
    "spaces": bytewise(lambda d, c: d.replace(b": ", b":  ", 1)),
    "upper case": bytewise(lambda d, c: d.swapcase()),
    "file gone": replaced(lambda f: None),
    "folder in place of a file": replaced(Path.mkdir),
    "link in place of a file": replaced(lambda f: f.symlink_to("/etc/hostname")),
    "link to itself": replaced(lambda f: f.symlink_to(f.name)),
    "pipe in place of a file": replaced(os.mkfifo),
    "two files swapped": swapped,
    "file renamed": renamed,
    "file of another checkpoint": of_another,
    "other hash": in_manifest(other_hash),
    "file left out": in_manifest(file_left_out),
    "key left out": in_manifest(key_left_out),
    "later step": in_manifest(later),
}

VALUES: list[Any] = [
    None,
    True,
    -1,
    1 << 70,
    0.5,
    "",
    "x" * 100_000,
    "../../../etc/passwd",
    [],
    {},
    [[[[[[]]]]]],
    {"$tensor": "no such"},
    {"$tensor": {"dtype": "F32", "shape": [1 << 40], "data": ""}},
    {"$tensor": {"dtype": "F32", "shape": [-1], "data": "AAAAAA=="}},
    {"$numpy": {"dtype": "BF16", "shape": [1], "data": "AAA="}, "scalar": False},
    {"$dict": [[[1], 2]]},
    {"$tuple": [1, 2, 3]},
    {"$float": "7ff8000000000000"},
    {"$path": "/etc/passwd"},
    {"$device": "cuda:77"},
    {"$size": [1 << 62]},
    {"$set": [[1]]},
    {"$bytes": "!!"},
    {"$call": "os.system"},
]


def places_in(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON tree."""
    found: list[tuple[Any, Any]] = []
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree))
    for key in list(keys):
        found.append((tree, key))
        if isinstance(tree[key], (dict, list)):
            found += places_in(tree[key])
    return found


def forged_value(tree: Any, chance: random.Random) -> None:
    holder, key = chance.choice(places_in(tree))
    holder[key] = chance.choice(VALUES)


def forged_gap(tree: Any, chance: random.Random) -> None:
    holder, key = chance.choice(places_in(tree))
    del holder[key]


def forged_twice(tree: Any, chance: random.Random) -> None:
    (one, a), (other, b) = (chance.choice(places_in(tree)) for _ in range(2))
    one[a] = json.loads(json.dumps(other[b]))


def forged_tree(change: Callable[[Any, random.Random], None]) -> Damage:
    """Changes something inside a JSON file."""

    def damage(path: Path, chance: random.Random) -> None:
        trees = [f for f in files_of(path) if f.suffix == ".json" and f.name != manifest.NAME]
        while True:
            file = chance.choice(trees)
            tree = json.loads(file.read_bytes())
            if places_in(tree):
                break
        change(tree, chance)
        file.write_text(json.dumps(tree))

    return damage


def forged_bytes(path: Path, chance: random.Random) -> None:
    file = chance.choice([f for f in files_of(path) if f.name != manifest.NAME])
    change = chance.choice([flipped, zeroed, removed, inserted, overwritten, other_number])
    file.write_bytes(change(file.read_bytes(), chance))


def forged_header(path: Path, chance: random.Random) -> None:
    """Changes something in the head of a safetensors file."""
    file = chance.choice(list(path.rglob("*.safetensors")))
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    chance.choice([forged_value, forged_gap, forged_twice])(head, chance)
    text = json.dumps(head).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def forged_manifest(path: Path, chance: random.Random) -> None:
    file = path / manifest.NAME
    whole = json.loads(file.read_bytes())
    forged_value(whole, chance)
    file.write_text(json.dumps(whole))


FORGERIES: dict[str, Damage] = {
    "other value": forged_tree(forged_value),
    "value left out": forged_tree(forged_gap),
    "value from elsewhere": forged_tree(forged_twice),
    "other bytes": forged_bytes,
    "other head of tensors": forged_header,
    "other manifest": forged_manifest,
}


def seal(path: Path) -> None:
    """Writes the manifest anew, so that it is right about the files."""
    import hashlib

    whole = json.loads((path / manifest.NAME).read_bytes())
    whole = {k: v for k, v in whole.items() if k not in ("sha256", "format")}
    files = {}
    for file in files_of(path):
        if file.name != manifest.NAME:
            data = file.read_bytes()
            entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            files[str(file.relative_to(path))] = entry
    content = manifest.content_hash(files)
    text = manifest.write({**whole, "files": files, "content": content})
    (path / manifest.NAME).write_bytes(text)


class Trials:
    """Tries mutations of one checkpoint.

    Attributes:
        found: how often each kind was tried, and how often it was accepted.
        wrong: what must never happen, in words.
    """

    def __init__(self, place: Path, seed: int, **options: Any) -> None:
        self.place, self.chance = place, random.Random(seed)
        trainer = trainer_of(place / "saved", save_interval=3, save_hash=False, **options)
        trainer.fit(num_steps=6)
        (place / "saved" / "checkpoint-step-3").rename(place / "other")
        self.whole = place / "saved" / "checkpoint-step-6"
        self.trainer = trainer_of(place / "unused")
        self.found: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []

    def damage(self, kind: str) -> None:
        """One damage; accepting it is wrong."""
        path = self._copy()
        DAMAGES[kind](path, self.chance)
        if self._outcome(kind, lambda: manifest.verify(path)) == "accepted":
            self.wrong.append(f"{kind} was accepted")

    def forge(self, kind: str) -> None:
        """One forgery; it may be loaded, or refused."""
        path = self._copy()
        FORGERIES[kind](path, self.chance)
        if kind != "other manifest" or self.chance.random() < 0.8:
            with suppress(AttributeError, TypeError, ValueError):  # no manifest any more
                seal(path)
        self._outcome(kind, lambda: self._load(path))

    def _load(self, path: Path) -> None:
        saved = Saved(Entry(path, manifest.verify(path)))
        ClassSource(self.trainer.ctx, saved).give(self.trainer.ctx, strict=True)

    def _copy(self) -> Path:
        path = self.place / "mutated"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.whole, path)
        return path

    def _outcome(self, kind: str, look: Callable[[], Any]) -> str:
        began, how = time.process_time(), "accepted"
        try:
            look()
        except CheckpointError as error:
            how = "refused"
            if len(str(error)) > 2000:
                self.wrong.append(f"{kind}: a message of {len(str(error))} characters")
        except BaseException as error:
            how = "raw"
            self.wrong.append(f"{kind}: {type(error).__name__}: {error!s:.300}")
        if time.process_time() - began > LONGEST:
            self.wrong.append(f"{kind}: took {time.process_time() - began:.1f} s")
        self.found[kind, how] += 1
        return how
