"""Records of an event file, written as bytes: one event with all scalars of a step.

A record is, in the TFRecord format::

    length (8 bytes) | checksum of the length (4) | data | checksum of the data (4)

and its data is the protocol buffer ``tensorboard.Event``::

    wall_time (8 bytes) | step (1 to 10 bytes) | summary: value, value, ...    value: tag, float32

Records with the same tags differ in a few bytes at known places only, so many of them are filled
into one array and checksummed together; building each as a protocol buffer costs ten times more.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hatbus_tensorboard.crc import masked_crcs

_DOUBLE, _VARINT, _BYTES, _FLOAT = 1, 0, 2, 5
_HEADER: Final = 12
"""Bytes before a record's data."""
_WIDER: Final = np.array([1 << 7 * width for width in range(1, 9)])
"""Steps from which on a varint takes one byte more."""


class Template(NamedTuple):
    """The bytes of a record without its values, and where these stand."""

    bytes: NDArray[np.uint8]
    wall_time: slice
    step: slice
    values: tuple[int, ...]


def scalar_records(
    tags: tuple[str, ...],
    steps: Sequence[int],
    wall_times: Sequence[float],
    values: NDArray[Any],
) -> list[bytes]:
    """Records of scalars with the same tags.

    Args:
        tags: of the values.
        steps: one per record.
        wall_times: one per record, in seconds since 1970.
        values: shape (records, tags).
    """
    counted, times = np.array(steps, np.int64), np.array(wall_times, "<f8")
    widths = 1 + np.searchsorted(_WIDER, counted, side="right")
    if widths.min() == widths.max():
        return _filled(template(tags, int(widths[0])), counted, times, values)
    records = [b""] * len(steps)
    for width in np.unique(widths).tolist():
        (chosen,) = np.nonzero(widths == width)
        made = _filled(template(tags, width), counted[chosen], times[chosen], values[chosen])
        for i, data in zip(chosen.tolist(), made, strict=True):
            records[i] = data
    return records


def record(data: bytes) -> bytes:
    """The record of one event of any kind."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import (  # type: ignore[import-untyped]
        masked_crc32c,
    )

    length = struct.pack("<Q", len(data))
    checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(checks) + data + next(checks)


def varint(number: int) -> bytes:
    """A protocol buffer's variable-length integer."""
    number &= (1 << 64) - 1
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


@lru_cache(maxsize=512)
def template(tags: tuple[str, ...], step_width: int) -> Template:
    """The record of these tags, with room for a step of so many bytes."""
    head = _key(1, _DOUBLE) + bytes(8) + _key(2, _VARINT) + bytes(step_width)
    summary, places = b"", []
    for tag in tags:
        name = tag.encode()
        value = _key(1, _BYTES) + varint(len(name)) + name + _key(2, _FLOAT) + bytes(4)
        summary += _key(1, _BYTES) + varint(len(value)) + value
        places.append(len(summary) - 4)
    head_of_summary = _key(5, _BYTES) + varint(len(summary))
    data = head + head_of_summary + summary
    length = np.frombuffer(struct.pack("<Q", len(data)), np.uint8)
    check = masked_crcs(length[None]).astype("<u4").view(np.uint8)
    whole = np.concatenate([length, check, np.frombuffer(data + bytes(4), np.uint8)])
    start = _HEADER + len(head) + len(head_of_summary)
    at_step = _HEADER + 10
    return Template(
        whole,
        slice(_HEADER + 1, _HEADER + 9),
        slice(at_step, at_step + step_width),
        tuple(start + place for place in places),
    )


def _filled(
    blank: Template, steps: NDArray[Any], wall_times: NDArray[Any], values: NDArray[Any]
) -> list[bytes]:
    """Records; every step needs as many bytes as the template has room for."""
    rows = np.tile(blank.bytes, (len(steps), 1))
    rows[:, blank.wall_time] = wall_times.view(np.uint8).reshape(-1, 8)
    last = blank.step.stop - 1
    for place in range(blank.step.start, last + 1):
        rows[:, place] = steps & 0x7F | (0x80 if place < last else 0)  # as varint() does
        steps = steps >> 7
    floats = np.ascontiguousarray(values.astype("<f4")).view(np.uint8)
    floats = floats.reshape(len(steps), -1, 4)
    for index, place in enumerate(blank.values):
        rows[:, place : place + 4] = floats[:, index]
    crcs = masked_crcs(rows[:, _HEADER:-4]).astype("<u4")
    rows[:, -4:] = crcs.view(np.uint8).reshape(-1, 4)
    data, length = rows.tobytes(), rows.shape[1]
    return [data[start : start + length] for start in range(0, len(data), length)]


def _key(field: int, kind: int) -> bytes:
    return bytes([field << 3 | kind])
