"""The runs of a pair: one to the end, one that is killed, one that goes on; and their comparison.

Each runs in a process of its own, forked from one that has only imported. A run notes every step:
its batch, its losses, its learning rates, and all that was published. Compared are these notes, the
files of the last checkpoint, and what the pair itself looks at.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hatbus import Trainer, hookimpl, plugin, rng
from hatbus.data import fields_of
from hatbus.errors import HatbusError
from hatbus_checkpoint import Checkpoint
from hatbus_checkpoint.folder import CheckpointFolder
from works_with.pair import Pair
from works_with.small import EPOCHS, STEPS, usual_parts

KILLED_IN = 9
"""The step in whose begin the process is killed: the fourth of the second epoch."""
LIMIT_S = 150
"""Seconds after which a run is taken to hang."""


@plugin(stage="report")
class Notes:
    """Writes what every step saw and did, line by line."""

    def __init__(self, file: Path) -> None:
        self.file = file.open("a")
        self.published: dict[str, Any] = {}
        self.batches: list[str] = []

    @hookimpl
    def on_batch_begin(self, batch: Any) -> None:
        self.batches.append(digest(batch))

    @hookimpl
    def on_optimizer_step_end(self) -> None:
        with Path("updates").open("a") as file:
            file.write(".")

    @hookimpl
    def on_log(self, logs: Mapping[str, Any], kind: str) -> None:
        self.published |= {f"{kind} {name}": digest(value) for name, value in logs.items()}

    @hookimpl
    def on_step_end(self, ctx: Any, optimizer: Any, losses: dict[str, torch.Tensor]) -> None:
        if ctx.exception is not None:
            return
        self.write(
            step=ctx.global_step_id,
            epoch=ctx.epoch_id,
            batches=self.batches,
            losses={name: repr(loss.tolist()) for name, loss in losses.items()},
            lr=[repr(group.get("lr") and float(group["lr"])) for group in optimizer.param_groups],
        )
        self.batches = []

    @hookimpl
    def on_epoch_end(self, ctx: Any) -> None:
        if ctx.exception is None:
            self.write(ended=ctx.epoch_id)

    def write(self, **row: Any) -> None:
        self.file.write(json.dumps({**row, "published": self.published}) + "\n")
        self.file.flush()
        self.published = {}


class Kills:
    """Kills this process, as a machine that is lost would."""

    @hookimpl
    def on_step_begin(self, global_step_id: int) -> None:
        if global_step_id == KILLED_IN:
            os.kill(os.getpid(), signal.SIGKILL)


def digest(value: Any) -> str:
    """A short name of what a value holds, whatever it is made of."""
    return hashlib.sha256(text_of(value).encode("utf-8", "replace")).hexdigest()[:16]


def text_of(value: Any) -> str:
    fields = fields_of(value)
    if isinstance(value, torch.Tensor):
        return text_of_tensor(value)
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{value.tolist()!r}"
    if isinstance(value, Mapping) or fields is not None:
        named = value if fields is None else fields
        return "{" + ",".join(f"{name}:{text_of(named[name])}" for name in named.keys()) + "}"  # noqa: SIM118 - a TensorDict's iter gives rows
    if isinstance(value, (list, tuple, deque)):
        return "[" + ",".join(map(text_of, value)) + "]"
    if isinstance(value, (set, frozenset)):
        return "<" + ",".join(sorted(map(text_of, value))) + ">"
    return repr(value)


def text_of_tensor(value: torch.Tensor) -> str:
    dense = value if value.layout == torch.strided else value.to_dense()
    whole = dense.detach().resolve_conj().resolve_neg().contiguous().cpu()
    data = whole.flatten().view(torch.uint8) if whole.numel() else whole.to(torch.uint8)
    content = hashlib.sha256(data.numpy().tobytes()).hexdigest()
    return f"{whole.dtype}{list(whole.shape)}{content}"


def train(pair: Pair, place: Path, shared: Path, *, is_killed: bool = False) -> None:
    """Runs a pair in this process, going on from what is in ``place``."""
    rng.seed_all(0)
    parts = usual_parts(pair.parts(shared))
    plugins = parts.pop("plugins", [])
    every = {"save_interval": pair.saved_every, "interval_by": "step", "resume": "auto"}
    every |= parts.pop("checkpoint", {})
    more = {
        "notes": Notes(place / "notes.jsonl"),
        "checkpoint": Checkpoint(str(place / "checkpoints"), **every),
        **({"kills": Kills()} if is_killed else {}),
    }
    if not isinstance(plugins, Mapping):
        plugins = {f"part_{number}": one for number, one in enumerate(plugins)}
    plan = {"num_epochs": EPOCHS}
    if "steps" in parts:
        plan = {"num_steps": parts.pop("steps")}
    trainer = Trainer(**parts, plugins={**plugins, **more})
    trainer.fit(**plan)
    looks = None if pair.looks is None else pair.looks(trainer, place)
    (place / "looks.json").write_text(json.dumps(looks, sort_keys=True), "utf-8")


def forked(work: Callable[[], None], place: Path, limit_s: float = LIMIT_S) -> int | None:
    """Does the work in a child; its exit code (negative: a signal), or None when it hangs.

    What it prints goes to ``log.txt``, and its error to ``error.json``.
    """
    place.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        code = 1
        try:
            log = os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ["OMP_NUM_THREADS"] = "1"
            handler = logging.StreamHandler(sys.stderr)
            logging.getLogger("hatbus").addHandler(handler)
            logging.getLogger("hatbus").setLevel(logging.INFO)
            os.chdir(place)
            work()
            code = 0
        except BaseException as error:
            traceback.print_exc()
            told = {"hatbus": isinstance(error, HatbusError), "text": str(error)}
            (place / "error.json").write_text(json.dumps(told), "utf-8")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            ended(child)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    ended(child)
    os.waitpid(child, 0)
    return None


def ended(child: int) -> None:
    """Ends what a child has left running (workers of a killed run) and, if it hangs, itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


def tried(pair: Pair, folder: Path) -> str:
    """What is not as the pair says, in a line; "" when it is."""
    shared = folder / "shared"
    shared.mkdir(parents=True)
    if pair.prepare is not None:
        prepare = pair.prepare
        if forked(lambda: prepare(shared), folder / "prepare") != 0:
            return f"cannot be prepared: {last_line(folder / 'prepare')}"
    whole = folder / "whole"
    code = forked(lambda: train(pair, whole, shared), whole)
    if pair.refused:
        return not_refused(pair, whole, code)
    if code != 0:
        return f"the run that nobody stops ends with {code}: {last_line(whole)}"
    said = (whole / "log.txt").read_text("utf-8", "replace")
    if pair.limit and not re.search(pair.limit, said):
        return f"nothing is said of its limit, {pair.limit!r}"
    return killed_and_gone_on_with(pair, folder, shared)


def killed_and_gone_on_with(pair: Pair, folder: Path, shared: Path) -> str:
    """What is not as the pair says of a run that was killed, in a line; "" when it is."""
    whole, parts = folder / "whole", folder / "parts"
    code = forked(lambda: train(pair, parts, shared, is_killed=True), parts)
    if code != -signal.SIGKILL:
        return f"the run that is to be killed ends with {code}: {last_line(parts)}"
    code = forked(lambda: train(pair, parts, shared), parts)
    if code != 0:
        return f"the run that goes on ends with {code}: {last_line(parts)}"
    _, begins = notes(parts)
    saved = KILLED_IN // pair.saved_every * pair.saved_every
    if len(begins) != 2 or begins[1] != saved:
        return f"it begins at steps {begins}, and was saved at {saved}"
    problem = difference(whole, parts)
    if pair.limit is None or not pair.differs:
        return problem if pair.differs is not None else ""
    return "" if problem else "it goes on exactly: there is no limit"


def not_refused(pair: Pair, place: Path, code: int | None) -> str:
    """What is not as a refused pair should be."""
    error = place / "error.json"
    if code != 1 or not error.exists():
        return f"it is not refused, but ends with {code}"
    told = json.loads(error.read_text("utf-8"))
    updates = place / "updates"
    steps = len(updates.read_text()) if updates.exists() else 0
    if not told["hatbus"]:
        return f"it ends with an error that is not hatbus's: {told['text'][:300]}"
    if "\n" in told["text"] or not re.search(pair.refused, told["text"]):
        return f"it is refused otherwise: {told['text'][:300]}"
    return "" if steps == pair.after else f"it is refused after {steps} updates"


def difference(whole: Path, parts: Path) -> str:
    """How the run that went on differs from the one that nobody stopped, in a line."""
    expected, _ = notes(whole)
    found, _ = notes(parts)
    if expected.keys() != found.keys():
        return f"it has {len(found)} notes, and {len(expected)} without the kill"
    for place, row in expected.items():
        if found[place] != row:
            names = [name for name in row if row[name] != found[place].get(name)]
            return f"{place}: other {', '.join(names)}: {row} and {found[place]}"
    first, second = (files_of(place / "checkpoints") for place in (whole, parts))
    others = [n for n in sorted(first.keys() | second.keys()) if first.get(n) != second.get(n)]
    if others or "model.safetensors" not in first:
        return f"other files in the last checkpoint: {', '.join(others)}"
    seen, seen_again = ((place / "looks.json").read_text("utf-8") for place in (whole, parts))
    return "" if seen == seen_again else f"other results: {seen} and {seen_again}"


def notes(place: Path) -> tuple[dict[str, Any], list[int]]:
    """What each step and each end of an epoch last wrote, and the steps that runs began with."""
    found: dict[str, Any] = {}
    begins: list[int] = []
    step = None
    file = place / "notes.jsonl"
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        row = json.loads(line)
        if "ended" in row:
            found[f"end of epoch {row['ended']}"] = row
            continue
        if step is None or row["step"] != step + 1:
            begins.append(row["step"])
        step = row["step"]
        found[f"step {step}"] = row
    return found, begins


def files_of(folder: Path) -> dict[str, str]:
    """The hashes of the files of the newest checkpoint, which has to be that of the end."""
    found = CheckpointFolder(folder).latest()
    if found is None:
        return {}
    files = {name: file["sha256"] for name, file in found.manifest["files"].items()}
    return {**files, "step": str(found.manifest["progress"]["global_step"])}


def last_line(place: Path) -> str:
    """The last line that a run printed."""
    file = place / "log.txt"
    lines = file.read_text("utf-8", "replace").split("\n") if file.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "")[:400]


assert STEPS < KILLED_IN < 2 * STEPS
