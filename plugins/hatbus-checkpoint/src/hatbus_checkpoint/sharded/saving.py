"""One save by all processes: each writes and syncs its own files, the first commits them all.

::

    first   mkdir .tmp-x ......... digests of what all should have alike  -> all
    each    write rank-R.*, rank-R/*, fsync files and folders; size and hash of each -> first
    first   MANIFEST, fsync, rename, fsync: the commit; then what hangs on it        -> all

Nobody has committed before everybody's files are durable, and nobody goes on before the commit is.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import PeerError, SaveError
from hatbus_checkpoint import durable, manifest
from hatbus_checkpoint.sharded.peers import Peers, done
from hatbus_checkpoint.sharded.shard_files import OWN, PLACES, folder_of
from hatbus_checkpoint.tensor_file import NAMES, as_bytes, chunks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from hatbus_checkpoint.folder import CheckpointFolder, Entry
    from hatbus_checkpoint.sharded.placing import Part
    from hatbus_checkpoint.snapshot import Snapshot
    from hatbus_checkpoint.stream import Chunks

_PATIENCE_S: Final = 5.0


def save(
    folder: CheckpointFolder,
    stem: str,
    taken: Snapshot,
    fields: Mapping[str, Any],
    peers: Peers,
    *,
    hashed: bool,
    afterwards: Callable[[Entry], Path],
    begun: Callable[[], Path | None] | None = None,
    linked: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Writes and commits one checkpoint; every process calls this.

    Args:
        folder: of the checkpoints.
        stem: of its name.
        taken: what this process has of the run's state.
        fields: of the manifest.
        peers: the processes.
        hashed: put the content's hash into the name.
        afterwards: what the first process does when it is durable.
        begun: gives the folder that was made already, if it was, or raises why it could not be.
        linked: of the first process, size and sha256 of files that are in it.

    Returns:
        What ``afterwards`` returned.

    Raises:
        SaveError: this process's disk failed; nothing of it is left.
        PeerError: another's did.
    """
    form = {"format": manifest.SHARDED} if taken.shards else {}
    fields = {**fields, **form}

    def begin() -> tuple[Path, dict[str, str]]:
        made = begun() if begun else None
        return made or folder.begin(stem), digests_of(taken) if taken.shards else {}

    def finish(table: Mapping[str, Any]) -> Path:
        return afterwards(folder.finish(temporary, stem, table, fields, hashed=hashed))

    with _disk_errors_told(folder, taken):
        if peers.world == 1:
            made, files = begun() if begun else None, files_of(taken, {})
            entry = folder.write(stem, files, fields, hashed=hashed, begun=made, linked=linked)
            return afterwards(entry)
        try:
            temporary, common = peers.from_first(begin)
            mine = done(partial(_fill, folder, temporary, taken, common, linked))
            came = peers.to_first((mine.result, mine.fault))
            fault = peers.send(_first_fault(came))
            if fault:
                raise mine.error or PeerError(fault)
            return peers.from_first(partial(finish, {k: v for t, _ in came for k, v in t.items()}))
        except BaseException:
            if peers.rank == 0:
                folder.abandon(stem)
            raise


@contextmanager
def _disk_errors_told(folder: CheckpointFolder, taken: Snapshot) -> Iterator[None]:
    """An error of the disk says what was needed and what still stands."""
    try:
        yield
    except OSError as error:
        raise durable.save_error(error, folder.path, taken.size) from error


def _first_fault(came: Sequence[tuple[Any, str]]) -> str:
    """Which process could not write its files, in words; empty if all did."""
    faults = (
        f"rank {rank} could not save: {fault}" for rank, (_, fault) in enumerate(came) if fault
    )
    return next(faults, "")


def _fill(
    folder: CheckpointFolder,
    temporary: Path,
    taken: Snapshot,
    common: Mapping[str, str],
    linked: Mapping[str, Mapping[str, Any]] | None,
) -> dict[str, Mapping[str, Any]]:
    """Writes this process's files."""
    if not _comes(temporary):
        raise SaveError(f"the folder {temporary.name!r} that rank 0 has made is not seen here")
    return folder.fill(temporary, files_of(taken, common), linked)


def _comes(path: Path) -> bool:
    """Whether a folder is there, or comes soon: a network's disk may be a little behind."""
    until = time.monotonic() + _PATIENCE_S
    while not path.is_dir():
        if time.monotonic() > until:
            return False
        with suppress(OSError):
            list(path.parent.iterdir())  # makes some of them look anew
        time.sleep(0.1)
    return True


def files_of(taken: Snapshot, common: Mapping[str, str]) -> dict[str, Chunks]:
    """The files that this process writes: relative path to what gives the bytes.

    Args:
        taken: the process's state.
        common: stem to digest of the state that the first process writes for all.
    """
    mine = folder_of(taken.rank)
    whole = dict(taken.files())
    if taken.rank:
        digests = digests_of(taken) if common else {}
        own = {stem for stem, digest in digests.items() if common.get(stem) != digest}
        whole = {
            name if stem == mine else f"{mine}/{OWN}/{name}": chunks
            for name, chunks in whole.items()
            if (stem := name.rpartition(".")[0]) in own or stem == mine
        }
    shards = taken.shards.items()
    return whole | {f"{mine}/{s}.safetensors": partial(_chunks, parts) for s, parts in shards}


def digests_of(taken: Snapshot) -> dict[str, str]:
    """A digest per stem of the state that is no process's own, to find out where it differs."""
    found = {}
    for stem, (data, tensors) in taken.parts.items():
        if stem.startswith("rank-"):
            continue
        digest = hashlib.sha256(json.dumps(data).encode(), usedforsecurity=False)
        for name in sorted(tensors):
            digest.update(name.encode())
            if tensors[name].numel():
                digest.update(as_bytes(tensors[name]))
        found[stem] = digest.hexdigest()
    return found


def _chunks(parts: Mapping[str, Part]) -> Iterator[memoryview]:
    """A file of parts; the header says where each lies, also of those that another writes."""
    places = {
        key: [NAMES[p.local.dtype], p.shape, p.box.offset, p.box.size, p.placements]
        for key, p in parts.items()
    }
    tensors = {key: part.local for key, part in parts.items() if part.is_written}
    return chunks_of(tensors, {"format": "pt", PLACES: json.dumps(places)})
