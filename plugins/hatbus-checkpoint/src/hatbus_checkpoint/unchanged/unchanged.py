"""``Unchanged``: remembers what earlier saves wrote, and decides what the next one has to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hatbus_checkpoint import durable, pieces, tensor_file
from hatbus_checkpoint.unchanged import digests
from hatbus_checkpoint.unchanged.kept_file import KeptFile
from hatbus_checkpoint.unchanged.plan import Plan

if TYPE_CHECKING:
    from hatbus_checkpoint.folder import Entry
    from hatbus_checkpoint.tree import Tensors

Key = tuple[str, str]
"""Stem and name of a tensor."""
Write = Callable[[Mapping[str, Mapping[str, Any]]], Mapping[str, Mapping[str, Any]]]
"""Writes files, each of tensors by name; gives size and sha256 of each."""
LEAST: Final = 4 << 20
"""Bytes that a file has to spare at later saves: a file of its own costs as much time as these."""
_LARGEST: Final = 256 << 20
"""Bytes of a file with what stays: a tensor in it that changes after all has it written again."""
_MOST: Final = 24
"""Files of a stem that are shared; with more of them everything is put together again."""


class Seen(NamedTuple):
    """What is known of a tensor since the last save; the hash of all of it where it was wanted.

    One that ``stayed`` is hashed next time without a look at its sample.
    """

    sample: bytes
    whole: bytes | None
    stayed: bool


class Unchanged:
    """What the saves of one run share.

    Args:
        copies: 1: a save shares files with the one before; 2: with the last but one, so that no
            two neighbours have a file in common.
        least: bytes of tensors that do not change for which a file of their own is worth while.
    """

    def __init__(self, copies: int = 2, least: int | None = None) -> None:
        self._kept: list[list[KeptFile]] = [[] for _ in range(copies)]
        self._turn, self._least = 0, LEAST if least is None else least
        self._seen: dict[Key, Seen] = {}

    def plan(
        self,
        parts: Mapping[str, Tensors],
        folder: Path,
        expected: Collection[Key] = (),
        write: Write | None = None,
    ) -> Plan:
        """Decides about a save, and makes its links.

        Args:
            parts: stem to the tensors that are saved, which stand still meanwhile.
            folder: of the new checkpoint; what is shared is linked there.
            expected: tensors that will probably stay as they are; a guess that only says whether
                they get a file of their own at once.
            write: writes files, given by name and the tensors in each, into the new folder; gives
                size and sha256 of each. What will hardly stay is then written while the rest is
                hashed.

        Raises:
            OSError: the disk failed.
        """
        tensors = {(stem, n): t for stem, mine in parts.items() for n, t in mine.items()}
        samples = self._samples(tensors)
        wanted = self._alike(tensors, samples, expected)
        ahead: dict[str, dict[str, Any]] = {}
        written: Mapping[str, Mapping[str, Any]] = {}
        with digests.begun_whole(wanted) as found:
            if write is not None and sum(t.nbytes for t in wanted.values()) >= self._least:
                ahead = self._guess(parts, wanted)
                written = write(ahead) if ahead else {}
            whole = found()
        plan = Plan(digests=self._settled(tensors, samples, whole, expected))
        for stem in parts:
            self._plan_stem(plan, stem, parts, folder)
        files = {f: ns for stem in parts for f, ns in plan.files(stem, parts[stem]).items()}
        for name, mine in ahead.items():
            if set(files.get(name, ())) == set(mine):
                plan.ahead[name] = written[name]
            else:
                durable.unlink_file(folder / name)
        return plan

    def learn(self, plan: Plan, entry: Entry) -> None:
        """Remembers the files of a save that is committed."""
        with suppress(OSError):
            self._kept[self._turn] = plan.kept_in(entry.path, entry.manifest["files"])
            self._turn = (self._turn + 1) % len(self._kept)

    def adopt(self, entry: Entry) -> None:
        """Takes over the files of a checkpoint that was just verified and resumed from."""
        self._seen, found = {}, []
        for stem in pieces.stems_of(entry.manifest):
            for name in pieces.files_of(entry.manifest, stem):
                tensors = tensor_file.read(entry.path / name)
                whole, stayed = digests.all_whole(tensors), bool(pieces.number_of(stem, name))
                for one, tensor in tensors.items():
                    sample = digests.sample(tensor)
                    self._seen[stem, one] = Seen(sample, whole[one], stayed=stayed)
                if stayed:
                    with suppress(OSError):
                        files = entry.manifest["files"]
                        found.append(KeptFile.at(entry.path, stem, name, files[name], whole))
        self._kept[self._turn] = found
        self._turn = (self._turn + 1) % len(self._kept)

    # ---- what stayed ----------------------------------------------------------------------------

    def _samples(self, tensors: Mapping[Key, Any]) -> dict[Key, bytes]:
        """The samples; of those tensors that stayed what they were, which is what they will be."""
        before = self._seen
        return {
            key: before[key].sample
            if key in before and before[key].stayed
            else digests.sample(tensor)
            for key, tensor in tensors.items()
        }

    def _alike(
        self, tensors: Mapping[Key, Any], samples: Mapping[Key, bytes], expected: Collection[Key]
    ) -> dict[Key, Any]:
        """Those tensors that look as they did at the last save, or as those that are expected."""
        before = self._seen
        likely = {samples[key] for key in expected if key in samples}
        return {
            key: tensor
            for key, tensor in tensors.items()
            if (before[key].sample == samples[key] if key in before else samples[key] in likely)
        }

    def _guess(
        self, parts: Mapping[str, Tensors], alike: Mapping[Key, Any]
    ) -> dict[str, dict[str, Any]]:
        """The larger files that have to be written if all that looks as it was is as it was."""
        known = {key: seen.whole for key in alike if (seen := self._seen.get(key)) is not None}
        stayed = {key: whole for key, whole in known.items() if whole is not None}
        unknown = {stem for stem, _ in alike.keys() - known.keys()}
        found: dict[str, dict[str, Any]] = {}
        for stem, tensors in parts.items():
            if stem in unknown or any(pieces.is_piece(stem, other) for other in parts):
                continue
            linked = {n for k in self._candidates(stem, tensors, stayed) for n in k.digests}
            rest = [n for n in tensors if n not in linked]
            settled = [n for n in rest if (stem, n) in stayed]
            if sum(tensors[n].nbytes for n in settled) < self._least:
                settled = []
            is_whole = not linked and not settled
            name = f"{stem}.safetensors" if is_whole else pieces.file_of(stem, 0)
            changing = {n: tensors[n] for n in rest if n not in settled}
            if changing and sum(t.nbytes for t in changing.values()) >= self._least:
                found[name] = changing
        return found

    def _settled(
        self,
        tensors: Mapping[Key, Any],
        samples: Mapping[Key, bytes],
        whole: Mapping[Key, bytes],
        expected: Collection[Key],
    ) -> dict[Key, bytes]:
        """The hashes of those tensors that are as they were at the last save, or expected to be."""
        before = self._seen
        alike = {whole[key] for key in expected if key in whole and key not in before}
        settled = {
            key: found
            for key, found in whole.items()
            if (before[key].whole == found if key in before else found in alike)
        }
        self._seen = {}
        for key, tensor in tensors.items():
            stayed = key in settled
            is_old = not stayed and key in before and before[key].stayed
            sample = digests.sample(tensor) if is_old else samples[key]
            self._seen[key] = Seen(sample, whole.get(key), stayed)
        return settled

    # ---- where they are -------------------------------------------------------------------------

    def _plan_stem(self, plan: Plan, stem: str, parts: Mapping[str, Tensors], folder: Path) -> None:
        tensors = parts[stem]
        if any(pieces.is_piece(stem, other) for other in parts):  # a plugin of an odd name
            return
        linked = [k for k in self._candidates(stem, tensors, plan.digests) if k.link_into(folder)]
        rest = set(tensors).difference(*(kept.digests for kept in linked))
        settled = [n for n in tensors if n in rest and (stem, n) in plan.digests]
        if sum(tensors[n].nbytes for n in settled) < self._least:
            settled = []
        if not linked and not settled:
            return
        plan.linked += linked
        plan.written[stem] = files = self._files(stem, settled, tensors)
        rest -= set(settled)
        changing = [n for n in tensors if n in rest]
        if changing:
            files[pieces.file_of(stem, 0)] = changing
        if stem == "model":
            where = {n: kept.name for kept in linked for n in kept.digests}
            where |= {n: file for file, names in files.items() for n in names}
            plan.index = pieces.index_of(where, tensors)

    def _candidates(self, stem: str, tensors: Tensors, now: Mapping[Key, bytes]) -> list[KeptFile]:
        """The files of which every tensor is as it was."""
        mine = [kept for kept in self._kept[self._turn] if kept.stem == stem]
        if len(mine) > _MOST:
            return []
        return [k for k in mine if all(now.get((stem, n)) == d for n, d in k.digests.items())]

    def _files(self, stem: str, names: list[str], tensors: Tensors) -> dict[str, list[str]]:
        """New files for tensors that stay, none of them large."""
        kept = (k.name for mine in self._kept for k in mine if k.stem == stem)
        number = max((pieces.number_of(stem, name) for name in kept), default=0)
        largest = max(_LARGEST, sum(tensors[n].nbytes for n in names) // 8)
        files: dict[str, list[str]] = {}
        size = 0
        for name in names:
            size += tensors[name].nbytes
            if not files or size > largest:
                number, size = number + 1, tensors[name].nbytes
            files.setdefault(pieces.file_of(stem, number), []).append(name)
        return files
