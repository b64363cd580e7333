"""The scalars of a step, gathered so that they become one record of the file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hatbus.control import log
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

    __slots__ = ("_file", "_plain", "_step", "_warned")

    def __init__(self, file: EventFile) -> None:
        self._file, self._step = file, -1
        self._plain: dict[str, float] = {}
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
        if tensors:  # copied now: whoever published them may go on changing them
            found = stacked(tensors.values())
            self._file.add_scalars((tuple(tensors), step, time.time(), found))

    def put(self) -> None:
        """Gives the file what was gathered."""
        plain = self._plain
        if plain:
            self._plain = {}
            found = tuple(plain.values())
            self._file.add_scalars((tuple(plain), self._step, time.time(), found))

    def flush(self) -> None:
        """Writes everything, other events of the file too; it survives the process's death."""
        self.put()
        self._file.flush()

    def close(self) -> None:
        """Writes everything and closes the file."""
        self.put()
        self._file.close()

    def _warn_once(self, name: str, value: Any) -> None:
        if name not in self._warned:
            self._warned.add(name)
            shown = f"{value!r:.80}"
            log.warning("tensorboard: %r is no single number but %s; left out", name, shown)
