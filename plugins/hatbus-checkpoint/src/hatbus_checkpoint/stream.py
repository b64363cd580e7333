"""The bytes of a file in blocks, joined ahead of the writing and hashed behind it.

::

    chunks -> copy -> write -> [sha256]     hashing in a thread of its own,
                ^                 |         once there is more than one block
                `-- empty blocks -'

The disk need not wait for the hash so, and stores what it was given while the rest is hashed.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from queue import SimpleQueue
from typing import Final

Chunks = Callable[[], Iterable[memoryview | bytes]]
"""Gives the bytes of a file."""
BLOCK: Final = 4 << 20
"""Bytes of a block. All blocks of a file have so many, but for the last; all start at a page."""
_BLOCKS: Final = 8
"""Blocks of memory: so far the writing may be ahead of the hash."""


class Memory:
    """The blocks that files pass through, one file after the other.

    Args:
        hashing: a thread.
    """

    def __init__(self, hashing: Executor) -> None:
        self.hashing = hashing
        self._empty: SimpleQueue[memoryview] = SimpleQueue()
        self._made = 0

    def take(self) -> memoryview:
        """An empty block; waits for one where all are in use."""
        if self._made == _BLOCKS or not self._empty.empty():
            return self._empty.get()
        self._made += 1
        return new_block()

    def give(self, block: memoryview) -> None:
        """Gives a block back, or a part of it."""
        self._empty.put(memoryview(block.obj))


class Stream:
    """Joins chunks to blocks of a whole size in aligned memory.

    Args:
        chunks: of the file.
        memory: for this file and others.

    Attributes:
        size: bytes given out so far.
    """

    def __init__(self, chunks: Iterable[memoryview | bytes], memory: Memory) -> None:
        self.size = 0
        self._chunks, self._memory = chunks, memory
        self._digest = hashlib.sha256(usedforsecurity=False)

    @property
    def sha256(self) -> str:
        """Of everything, when all blocks were taken and the thread has ended."""
        return self._digest.hexdigest()

    def blocks(self) -> Iterator[memoryview]:
        """The blocks; one is hashed, and its memory used again, when the next was asked for."""
        for block in self._filled():
            self.size += len(block)
            yield block
            if self.size < BLOCK:
                self._hash(block)
            else:
                self._memory.hashing.submit(self._hash, block)

    def _filled(self) -> Iterator[memoryview]:
        buffer, used = self._memory.take(), 0
        for chunk in self._chunks:
            rest = memoryview(chunk)
            while rest:
                if used == BLOCK:
                    yield buffer
                    buffer, used = self._memory.take(), 0
                part = rest[: BLOCK - used]
                buffer[used : used + len(part)] = part
                used, rest = used + len(part), rest[len(part) :]
        if used:
            yield buffer[:used]

    def _hash(self, block: memoryview) -> None:
        self._digest.update(block)
        self._memory.give(block)


def new_block() -> memoryview:
    """Empty memory of a block's size; large pages, where there are any, are ten times quicker."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(mmap.mmap(-1, BLOCK))
    memory = mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
