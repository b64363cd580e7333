"""Records written as bytes are what TensorBoard's own writer and protocol buffers make."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from hatbus_tensorboard.crc import masked_crcs
from hatbus_tensorboard.records import record, scalar_records, varint


@given(st.lists(st.binary(min_size=9, max_size=9), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_checksums_of_rows_are_those_of_tensorboard(rows: list[bytes]) -> None:
    array = np.array([list(row) for row in rows], np.uint8)
    assert masked_crcs(array).tolist() == [masked_crc32c(row) for row in rows]


@given(
    tags=st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=4, unique=True),
    steps=st.lists(st.integers(0, 2**40), min_size=1, max_size=6),
    value=st.floats(width=32, allow_nan=False),
)
@settings(max_examples=50, deadline=None)
def test_a_record_reads_back_as_the_event_it_was(
    tags: list[str], steps: list[int], value: float
) -> None:
    values = np.full((len(steps), len(tags)), value)
    values[:, 0] = np.arange(len(steps))
    times = [1e9 + step for step in steps]
    for index, made in enumerate(scalar_records(tuple(tags), steps, times, values)):
        data = made[12:-4]
        assert made == record(data)
        assert made[:8] == struct.pack("<Q", len(data))
        event = Event.FromString(data)
        assert (event.step, event.wall_time) == (steps[index], times[index])
        assert [v.tag for v in event.summary.value] == tags
        assert [v.simple_value for v in event.summary.value] == [index, *[value] * (len(tags) - 1)]


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**35, 2**63 - 1])
def test_varints_are_those_of_protocol_buffers(number: int) -> None:
    assert Event(step=number).SerializeToString() == (b"\x10" + varint(number) if number else b"")
