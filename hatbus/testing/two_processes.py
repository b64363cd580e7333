"""The contract's run on two processes; a process is started with FILE, CLASS and FOLDER."""

from __future__ import annotations

import inspect
import os
import socket
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.testing.subject import skip
from hatbus.testing.trees import difference

if TYPE_CHECKING:
    from hatbus.testing.contract import PluginContract

WORLD: Final = 2
PATIENCE_S: Final = 90


def run_both(contract: type[PluginContract], folder: Path) -> str:
    """Starts both processes.

    Returns:
        What went wrong; empty if nothing.
    """
    if "<locals>" in contract.__qualname__:
        skip("a class made inside a function cannot be found by another process")
    file = inspect.getfile(contract)
    words = [sys.executable, "-m", __name__, file, contract.__qualname__, str(folder)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": _free_port(),
        "WORLD_SIZE": str(WORLD),
        "OMP_NUM_THREADS": "1",
    }
    started = [_start(words, {**environment, "RANK": str(rank)}) for rank in range(WORLD)]
    try:
        ended = [process.communicate(timeout=PATIENCE_S) for process in started]
    except subprocess.TimeoutExpired:
        return f"it did not end within {PATIENCE_S} s: one waits for the other"
    finally:
        for process in started:
            process.kill()
            process.wait()
    for rank, (process, (_, text)) in enumerate(zip(started, ended, strict=True)):
        if process.returncode:
            lines = text.decode(errors="replace").strip().splitlines() or ["(no message)"]
            return f"rank {rank} ended with {process.returncode}: {lines[-1]}"
    first, second = (torch.load(_result(folder, rank)) for rank in range(WORLD))
    found = difference(first, second, "weights")
    return f"the ranks end with different weights: {found}" if found else ""


def main(file: str, qualname: str, folder: str) -> None:
    """Runs the plugin of a contract as one rank of two."""
    torch.set_num_threads(1)
    contract: Any = _load(Path(file))
    for name in qualname.split("."):
        contract = getattr(contract, name)
    subject: PluginContract = contract()
    rank = int(os.environ["RANK"])
    parts = subject.build()
    data = parts["data"]
    if isinstance(data, list):  # every rank sees other batches
        data = data[rank:] + data[:rank]
    trial = subject.with_plugin(data=data).fit(subject.num_steps)
    # parameters, not buffers: the statistics of a batch norm are each rank's own
    weights = {n: p.detach() for n, p in trial.trainer.ctx.model.named_parameters()}
    torch.save(weights, _result(Path(folder), rank))


def _start(words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - this interpreter, with words of our own
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _load(file: Path) -> Any:
    spec = spec_from_file_location("hatbus_contract_under_test", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = sys.modules[spec.name] = module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    spec.loader.exec_module(module)
    return module


def _result(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.pt"


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
