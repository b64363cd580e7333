"""The versions that a checkpoint was written with."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

import torch

import hatbus


@cache
def versions() -> dict[str, str]:
    """Of python, torch, hatbus and this distribution."""
    try:
        mine = metadata.version("hatbus-checkpoint")
    except metadata.PackageNotFoundError:
        mine = "checkout"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hatbus": hatbus.__version__,
        "hatbus-checkpoint": mine,
    }
