"""The event file on disks that are full or slow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hatbus.errors import SaveError
from hatbus_tensorboard.event_file import EventFile

sys.path.insert(0, str(Path(__file__).parent))
from boards import raw_steps

sys.path.pop(0)


def test_a_disk_that_is_full_is_reported(tmp_path: Path) -> None:
    class Full:
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    events = EventFile(tmp_path)
    events._file.close()
    events._file = Full()  # type: ignore[assignment]
    events.add_scalars((("a",), 0, 0.0, (1.0,)))
    with pytest.raises(SaveError, match="No space left on device; make room"):
        events.close()


def test_a_file_that_takes_less_than_it_is_given_is_written_whole(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    taken = bytearray()

    class Short:
        def write(self, data: Any) -> int:
            taken.extend(data[:7])
            return min(7, len(data))

        def close(self) -> None: ...

    events._file.close()
    events._file = Short()  # type: ignore[assignment]
    events.add_scalars((("a",), 5, 0.0, torch.ones(1)))
    events.close()
    events.path.write_bytes(taken)
    assert raw_steps(tmp_path, "a") == [5]
