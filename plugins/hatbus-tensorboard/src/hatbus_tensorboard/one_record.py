"""The scalars of a step, gathered so that they become one record of the file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hatbus.log import log
from hatbus_tensorboard.scalars import is_on_host, is_scalar, stacked

if TYPE_CHECKING:
    from hatbus_tensorboard.event_file import EventFile


class OneRecord:
    """Takes what is published in a step, bit by bit.

    A tensor in the host's own memory becomes a number at once: reading it waits for nothing and
    costs a tenth of keeping it. Those on a device are copied there, and read by the file's thread.

    Args:
        file: where the record goes when the step is over.
    """

    __slots__ = ("_copied", "_file", "_plain", "_step", "_warned")

    def __init__(self, file: EventFile) -> None:
        self._file, self._step = file, -1
        self._plain: dict[str, float] = {}
        self._copied: list[tuple[tuple[str, ...], Tensor]] = []
        self._warned: set[str] = set()

    def add(self, values: Mapping[str, Any], step: int) -> None:
        """Adds values; of two of one name the later one counts.

        What is no single number is left out, and named in a warning once.
        """
        if step != self._step:
            self.put()
            self._step = step
        plain, tensors = self._plain, {}
        for name, value in values.items():
            if type(value) is float:  # what most values are; asking further costs more
                plain[name] = value
            elif not is_scalar(value):
                self._warn_once(name, value)
            elif not isinstance(value, Tensor):
                plain[name] = float(value)
            elif is_on_host(value):
                plain[name] = value.item()
            else:
                tensors[name] = value
        if self._copied:
            self._drop_copied({n for n in values if n in plain or n in tensors})
        if tensors:  # copied now: whoever published them may go on changing them
            self._copied.append((tuple(tensors), stacked(tensors.values())))
            for name in plain.keys() & tensors.keys():
                del plain[name]

    def put(self) -> None:
        """Gives the file what was gathered."""
        plain, copied = self._plain, self._copied
        if copied:
            self._copied = []
            now = time.time()
            for names, found in copied:
                self._file.add_scalars((names, self._step, now, found))
        if plain:
            self._plain = {}
            values = tuple(plain.values())
            self._file.add_scalars((tuple(plain), self._step, time.time(), values))

    def flush(self) -> None:
        """Writes everything, other events of the file too; it survives the process's death."""
        self.put()
        self._file.flush()

    def close(self) -> None:
        """Writes everything and closes the file."""
        self.put()
        self._file.close()

    def _drop_copied(self, anew: set[str]) -> None:
        """Leaves out of what was copied what is published anew; waits for no device."""
        kept = []
        for names, found in self._copied:
            if anew.isdisjoint(names):
                kept.append((names, found))
                continue
            rows = {n: row for n, row in zip(names, found, strict=True) if n not in anew}
            if rows:
                kept.append((tuple(rows), stacked(rows.values())))
        self._copied = kept

    def _warn_once(self, name: str, value: Any) -> None:
        if name not in self._warned:
            self._warned.add(name)
            shown = f"{value!r:.80}"
            log.warning("tensorboard: %r is no single number but %s; left out", name, shown)
