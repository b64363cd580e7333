"""A file gets exactly its bytes and their hash, however they come, and no thread is left behind."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hatbus_checkpoint import durable, stream

PAGE = mmap.PAGESIZE


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stream, "BLOCK", PAGE)
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("hatbus-hash")]


@pytest.mark.parametrize("seed", range(40))
def test_a_file_is_its_chunks_and_their_hash(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    sizes = [chance.choice([0, 1, 100, PAGE - 1, PAGE, 3 * PAGE + 5]) for _ in range(seed % 9)]
    chunks = [chance.randbytes(size) for size in sizes]
    found = durable.write_file(tmp_path / "file", chunks)
    whole = b"".join(chunks)
    assert (tmp_path / "file").read_bytes() == whole
    assert found == (len(whole), hashlib.sha256(whole).hexdigest())


@pytest.mark.parametrize("seed", range(20))
def test_files_that_are_written_together_have_their_own_bytes(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_TOGETHER", 3)
    chance = random.Random(seed)
    sizes = [chance.choice([0, 1, PAGE, 2 * PAGE, 30 * PAGE + 5]) for _ in range(8)]
    contents = {tmp_path / f"{n}": chance.randbytes(size) for n, size in enumerate(sizes)}
    found = durable.write_files({p: lambda text=text: [text] for p, text in contents.items()})
    assert {path: path.read_bytes() for path in contents} == contents
    assert found == [(len(x), hashlib.sha256(x).hexdigest()) for x in contents.values()]


def test_the_disk_has_every_byte_before_the_hash_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, may_hash, sizes = os.fsync, threading.Event(), []

    class Late:
        """A hash that begins when the first file is brought to the disk."""

        def __init__(self, **_: Any) -> None:
            self.digest = hashlib.md5(usedforsecurity=False)

        def update(self, block: memoryview) -> None:
            assert may_hash.wait(60)
            self.digest.update(block)

        def hexdigest(self) -> str:
            return self.digest.hexdigest()

    def looks(file: int) -> None:
        sizes.append([path.stat().st_size for path in files])
        may_hash.set()
        fsync(file)

    files = {tmp_path / "a": lambda: [bytes(2 * PAGE)], tmp_path / "b": lambda: [bytes(5 * PAGE)]}
    monkeypatch.setattr(stream, "hashlib", SimpleNamespace(sha256=Late))
    monkeypatch.setattr(os, "fsync", looks)
    found = durable.write_files(files)
    assert sizes == [[2 * PAGE, 5 * PAGE]] * 2
    assert found[1].sha256 == hashlib.md5(bytes(5 * PAGE), usedforsecurity=False).hexdigest()


def test_a_chunk_that_cannot_be_made_is_raised_where_the_file_is_written(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield bytes(5 * PAGE)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        durable.write_file(tmp_path / "file", chunks())


@pytest.mark.parametrize("at", range(4))
def test_a_write_that_fails_ends_the_thread_and_closes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    write, calls = os.write, iter(range(99))

    def fails(file: int, block: Any) -> int:
        if next(calls) == at:
            raise OSError(errno.EIO, "failed")
        return write(file, block)

    monkeypatch.setattr(os, "write", fails)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="failed"):
        durable.write_file(tmp_path / "file", (bytes(PAGE) for _ in range(50)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_system_that_wants_its_cache_used_gets_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = 0
    write, fcntl = os.write, durable.fcntl

    def refuses(file: int, block: Any) -> int:
        nonlocal refused
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            refused += 1
            raise OSError(errno.EINVAL, "no")
        return write(file, block)

    monkeypatch.setattr(os, "write", refuses)
    data = random.Random(0).randbytes(3 * PAGE + 7)
    durable.write_file(tmp_path / "file", [data])
    assert refused
    assert (tmp_path / "file").read_bytes() == data


def test_large_files_go_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, fcntl, past = os.write, durable.fcntl, []

    def looks(file: int, block: Any) -> int:
        past.append(bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT))
        return write(file, block)

    monkeypatch.setattr(os, "write", looks)
    durable.write_file(tmp_path / "large", [bytes(2 * PAGE + 7)])
    assert past == [True, True, False]
    past.clear()
    durable.write_file(tmp_path / "small", [bytes(PAGE - 1)])
    assert past == [False]
