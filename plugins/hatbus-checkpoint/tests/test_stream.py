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
from typing import Any

import pytest

from hatbus_checkpoint import durable, stream

PAGE = mmap.PAGESIZE


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stream, "BLOCK", PAGE)
    yield
    assert not [t for t in threading.enumerate() if t.name == "hatbus-blocks"]


@pytest.mark.parametrize("seed", range(40))
def test_a_file_is_its_chunks_and_their_hash(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    sizes = [chance.choice([0, 1, 100, PAGE - 1, PAGE, 3 * PAGE + 5]) for _ in range(seed % 9)]
    chunks = [chance.randbytes(size) for size in sizes]
    found = durable.write_file(tmp_path / "file", chunks)
    whole = b"".join(chunks)
    assert (tmp_path / "file").read_bytes() == whole
    assert found == (len(whole), hashlib.sha256(whole).hexdigest())


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
