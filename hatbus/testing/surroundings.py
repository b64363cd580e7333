"""What a run must leave as it was: threads, streams, signals, hooks, files, torch's settings."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

_PATIENCE_S = 2.0


def settings() -> dict[str, Any]:
    """Settings of the process that change what any other code computes."""
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "torch's matmul precision": torch.get_float32_matmul_precision(),
        "torch's anomaly mode": torch.is_anomaly_enabled(),
    }


class Surroundings:
    """What is open and installed in this process, and hooked onto a model."""

    def __init__(self) -> None:
        self._settings = settings()
        self._threads = set(threading.enumerate())
        self._streams = _streams()
        self._handlers = {s: signal.getsignal(s) for s in signal.valid_signals()}
        self._logs = _log_handlers()
        self._files = _open_files()

    def left_over(self, model: torch.nn.Module) -> str:
        """What a run left behind; empty if nothing."""
        if _open_files() - self._files:
            gc.collect()  # a file that nobody holds any more is not left behind
        now, streams = settings(), _streams()
        left = [f"{name} changed" for name, value in self._settings.items() if now[name] != value]
        left += [
            f"sys.{name} replaced"
            for name, one in self._streams.items()
            if one is not streams[name]
        ]
        left += [
            f"signal {s} rerouted" for s, h in self._handlers.items() if h != signal.getsignal(s)
        ]
        left += [f"log handler {handler!r}" for handler in _log_handlers() - self._logs]
        left += [f"open file {name!r}" for name in sorted(_open_files() - self._files)]
        return next(iter(left), "") or self._threads_left() or _hooks_left(model)

    def _threads_left(self) -> str:
        """A thread that does not end within some patience."""
        until = time.monotonic() + _PATIENCE_S
        left: set[threading.Thread] = set()
        while time.monotonic() < until:
            left = {t for t in threading.enumerate() if t.is_alive()} - self._threads
            if not left:
                return ""
            next(iter(left)).join(0.05)
        return f"running thread {next(iter(left)).name!r}"


def _streams() -> dict[str, Any]:
    return {
        "stdout": sys.stdout,
        "stderr": sys.stderr,
        "excepthook": sys.excepthook,
        "displayhook": sys.displayhook,
    }


def _log_handlers() -> set[logging.Handler]:
    return {*logging.getLogger().handlers, *logging.getLogger("hatbus").handlers}


def _open_files() -> set[str]:
    """Paths of this process's open regular files; empty where the system does not tell."""
    found = set()
    folder = Path("/proc/self/fd")
    for link in os.listdir(folder) if folder.is_dir() else ():  # noqa: PTH208 - names are enough
        try:
            target = os.readlink(folder / link)  # noqa: PTH115 - may be no path at all
        except OSError:
            continue
        if target.startswith("/") and not target.startswith(("/dev", "/proc")):
            found.add(target)
    return found


def _hooks_left(model: torch.nn.Module) -> str:
    """A hook that is still on a module."""
    for name, module in model.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            if getattr(module, kind):
                return f"a hook on module {name!r} ({kind.strip('_')})"
    return ""
