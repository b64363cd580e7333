"""The contract's runs on two processes; a process is started with FILE, FOLDER and CLASSES."""

from __future__ import annotations

import inspect
import os
import re
import socket
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.errors import PluginError
from hatbus.events import declaration_of
from hatbus.testing.subject import skip
from hatbus.testing.trees import difference
from hatbus.testing.verdict import ContractFailure

if TYPE_CHECKING:
    from hatbus.testing.contract import PluginContract
    from hatbus.testing.trial import Trial

WORLD: Final = 2
PATIENCE_S: Final = 90
PATIENCE_EACH_S: Final = 10
PATIENCE_ALONE_S: Final = 20
_MARK: Final = "hatbus.testing runs "


def run_both(folder: Path, *contracts: type[PluginContract]) -> str:
    """Runs the plugins of some contracts, one after the other, on the same two processes.

    Args:
        folder: for what the processes leave.
        contracts: classes of one file.

    Returns:
        What went wrong first; empty if nothing.
    """
    names = [contract.__qualname__ for contract in contracts]
    if "<locals>" in "".join(names):
        skip("a class made inside a function cannot be found by another process")
    words = [sys.executable, "-m", __name__, inspect.getfile(contracts[0]), str(folder), *names]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": _free_port(),
        "WORLD_SIZE": str(WORLD),
        "OMP_NUM_THREADS": "1",
    }
    logs = [folder / f"rank-{rank}.txt" for rank in range(WORLD)]
    patience = PATIENCE_S + PATIENCE_EACH_S * len(names)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank, log in enumerate(logs):
            started.append(_start(words, {**environment, "RANK": str(rank)}, log))
        until = time.monotonic() + patience
        in_time = [_ends(process, until) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    texts = [log.read_text("utf-8", "replace") for log in logs]
    if not all(in_time):
        late = f"it did not end within {patience} s: one waits for the other"
        return late + _under_way(texts[0])
    failed = [
        f"rank {rank} ended with {process.returncode}: {_reason(text)}"
        for rank, (process, text) in enumerate(zip(started, texts, strict=True))
        if process.returncode
    ]
    unequal = (_unequal(folder, name) for name in names)
    return "; ".join(failed) or next(filter(None, unequal), "")


def main(file: str, folder: str, *names: str) -> None:
    """Runs the plugins of some contracts as one rank of two."""
    torch.set_num_threads(1)
    module = _load(Path(file))
    for name in names:
        sys.stderr.write(f"{_MARK}{name}\n")
        sys.stderr.flush()
        subject = attrgetter(name)(module)()
        subject._common_folder = Path(folder) / f"{name}-files"  # noqa: SLF001 - of this package
        subject._common_folder.mkdir(exist_ok=True)  # noqa: SLF001
        _run(subject, _result(Path(folder), name, int(os.environ["RANK"])))


def _run(subject: PluginContract, result: Path) -> None:
    rank = int(os.environ["RANK"])
    data = subject.build()["data"]
    if isinstance(data, list):  # every rank sees other batches
        data = data[rank:] + data[:rank]
    trial = subject.with_plugin(data=data).fit(subject.num_steps)
    weights = weights_of(trial)
    torch.save(weights, result)
    if may_be_on_zero_alone(subject, trial):
        _run_on_zero(subject, data, weights)


def _run_on_zero(subject: PluginContract, data: Any, weights: dict[str, torch.Tensor]) -> None:
    """Runs it as a job with ``ranks = "zero"`` would, which must then change nothing."""
    advice = "declare @plugin(everywhere=True), so that a job cannot put it on one rank alone"
    trial = subject.with_plugin(data=data, timeout=PATIENCE_ALONE_S)
    plugin = trial.trainer.bus.unregister(subject.name)
    trial.trainer.bus.register(plugin, subject.name, overrides={"ranks": "zero"})
    try:
        trial.fit(subject.num_steps)
    except Exception as error:
        raise ContractFailure(
            f"{subject.name} with ranks='zero' fails ({error}); {advice}"
        ) from error
    found = difference(weights, weights_of(trial), "weights")
    if found:
        raise ContractFailure(
            f"{subject.name} trains otherwise with ranks='zero': {found}; {advice}"
        )


def weights_of(trial: Trial) -> dict[str, torch.Tensor]:
    """Parameters, not buffers: the statistics of a batch norm are each rank's own."""
    return {n: p.detach().clone() for n, p in trial.trainer.ctx.model.named_parameters()}


def may_be_on_zero_alone(subject: PluginContract, trial: Trial) -> bool:
    """Whether a job could put it on the first process, though its class says nothing of that."""
    plugin = trial.trainer.bus.members[subject.name].plugin
    if declaration_of(plugin).ranks == "zero":
        return False
    try:
        declaration_of(plugin, {"ranks": "zero"})
    except PluginError:
        return False
    return True


def _ends(process: subprocess.Popen[bytes], until: float) -> bool:
    """Whether a process ends in time."""
    try:
        process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _reason(text: str) -> str:
    """The exception in what a process wrote."""
    lines = [re.sub(r"^\[rank\d+\]: ?", "", line) for line in text.strip().splitlines()]
    raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(: |$)", line)]
    return next(reversed(raised or lines), "(no message)") + _under_way(text)


def _under_way(text: str) -> str:
    """Whose run it was in what a process wrote, if there were several."""
    begun = [line for line in text.splitlines() if line.startswith(_MARK)]
    return f" (in {begun[-1].removeprefix(_MARK)})" if len(begun) > 1 else ""


def _unequal(folder: Path, name: str) -> str:
    first, second = (torch.load(_result(folder, name, rank)) for rank in range(WORLD))
    found = difference(first, second, "weights")
    return f"the ranks end with different weights: {found} (of {name})" if found else ""


def _start(words: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(  # noqa: S603 - this interpreter, with words of our own
            words, env=environment, stdout=subprocess.DEVNULL, stderr=file
        )


def _load(file: Path) -> Any:
    spec = spec_from_file_location("hatbus_contract_under_test", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = sys.modules[spec.name] = module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    spec.loader.exec_module(module)
    return module


def _result(folder: Path, name: str, rank: int) -> Path:
    return folder / f"{name}-rank-{rank}.pt"


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
    # A plugin may still hold the group, whose threads the interpreter's end may abort (SIGABRT).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
