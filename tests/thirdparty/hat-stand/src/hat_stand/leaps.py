"""``hatbus leaps``: what a run's log says of its loss."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def leaps(words: Sequence[str]) -> int:
    """Tells at which steps of a run's log the loss rose.

    Returns:
        1 if there is one, else 0.
    """
    parser = argparse.ArgumentParser("hatbus leaps", description=leaps.__doc__)
    parser.add_argument("log", type=Path, help="what jsonl_log wrote")
    lines = parser.parse_args(words).log.read_text().splitlines()
    losses = [entry["watch/loss"] for entry in map(json.loads, lines) if "watch/loss" in entry]
    risen = [i for i in range(1, len(losses)) if losses[i] > losses[i - 1]]
    print(f"{len(losses)} losses, risen at: {', '.join(map(str, risen)) or 'none'}")
    return int(bool(risen))
