"""The bytes of a file in blocks, joined and hashed ahead of the writing.

::

    chunks -> [copy] -> blocks -> write      copying and hashing in threads of their own,
                 ^        `-----> [sha256]   once there is more than one block
                 `----- empty blocks <---'
"""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Final

BLOCK: Final = 4 << 20
"""Bytes of a block. All blocks of a file have so many, but for the last; all start at a page."""
_BLOCKS: Final = 3
"""Blocks of memory: one is written, one is ready, one is filled."""


class Stream:
    """Joins chunks to blocks of a whole size in aligned memory.

    Attributes:
        size: bytes given out so far.
    """

    def __init__(self, chunks: Iterable[memoryview | bytes]) -> None:
        self.size = 0
        self._chunks = chunks
        self._digest = hashlib.sha256(usedforsecurity=False)
        self._empty: SimpleQueue[memoryview] = SimpleQueue()
        self._made = 0
        self._is_over = False

    @property
    def sha256(self) -> str:
        """Of everything, when all blocks were taken."""
        return self._digest.hexdigest()

    def blocks(self) -> Generator[memoryview]:
        """The blocks; each one's memory is used again when the next is asked for.

        Close it when it is not read to its end: that ends the thread.
        """
        filled = self._filled()
        first = next(filled, None)
        if first is None:
            return
        if len(first) < BLOCK:
            self.size += len(first)
            self._digest.update(first)
            yield first
            return
        yield from self._ahead(first, filled)

    def _ahead(self, block: memoryview, filled: Iterator[memoryview]) -> Iterator[memoryview]:
        """The same, while one thread fills the next blocks and another hashes those filled."""
        ready: SimpleQueue[memoryview | BaseException | None] = SimpleQueue()
        unhashed: SimpleQueue[memoryview | None] = SimpleQueue()
        hashed: SimpleQueue[None] = SimpleQueue()

        def fill() -> None:
            end: BaseException | None = None
            try:
                for one in filled:
                    unhashed.put(one)
                    ready.put(one)
            except BaseException as error:  # noqa: BLE001 - raised again where the blocks are taken
                end = error
            unhashed.put(None)
            ready.put(end)

        def hash_filled() -> None:
            while (one := unhashed.get()) is not None:
                self._digest.update(one)
                hashed.put(None)

        threads = [threading.Thread(target=work, daemon=True) for work in (fill, hash_filled)]
        unhashed.put(block)
        for thread in threads:
            thread.start()
        found: memoryview | BaseException | None = block
        try:
            while isinstance(found, memoryview):
                self.size += len(found)
                yield found
                hashed.get()  # else its memory would be filled again too soon
                self._empty.put(found)
                found = ready.get()
            if found is not None:
                raise found
        finally:
            self._is_over = True
            self._empty.put(block)  # the first thread may be waiting for one
            for thread in threads:
                thread.join()

    def _filled(self) -> Iterator[memoryview]:
        buffer, used = self._next_empty(), 0
        for chunk in self._chunks:
            rest = memoryview(chunk)
            while rest and not self._is_over:
                part = rest[: BLOCK - used]
                buffer[used : used + len(part)] = part
                used, rest = used + len(part), rest[len(part) :]
                if used == BLOCK:
                    yield buffer
                    buffer, used = self._next_empty(), 0
        if used:
            yield buffer[:used]

    def _next_empty(self) -> memoryview:
        if self._made == _BLOCKS:
            return self._empty.get()
        self._made += 1
        return new_block()


def new_block() -> memoryview:
    """Empty memory of a block's size; large pages, where there are any, are ten times quicker."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(mmap.mmap(-1, BLOCK))
    memory = mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
