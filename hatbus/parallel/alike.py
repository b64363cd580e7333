"""Whether all processes are about to do the same: compared at the start of every fit.

Processes that differ would train on, each something else, or wait for each other for ever.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.parameter import is_lazy

from hatbus.discovery.entry_points import SOURCE
from hatbus.errors import JobError
from hatbus.parallel.board import patiently

if TYPE_CHECKING:
    from hatbus.loop.context import Context
    from hatbus.parallel.board import Board

_OF_A_MACHINE: Final = ("run_dir", "save_dir", "trace_dir", "device", "hatbus")
_OF_A_RANK: Final = ("rank", "dir", "path", "file", "folder", "device", "name")
_PLAIN: Final = (int, float, str, bool, type(None))
_SHORT: Final = 80
_MOST: Final = 5

Facts = dict[str, Any]


def check_alike(facts: Facts, board: Board) -> None:
    """Compares what all processes are about to do; every process calls this.

    Args:
        facts: name of each thing to what it is here; plain data.
        board: of all processes.

    Raises:
        JobError: which rank differs, and in what; on all ranks.
        PeerError: a process has failed, or does not come.
    """
    number = board.next("alike")
    plain = {name: json.dumps(value, sort_keys=True, default=str) for name, value in facts.items()}
    text = json.dumps(plain)
    digest = hashlib.sha256(text.encode()).hexdigest()
    board.put(f"facts {number} {board.rank}", text)
    board.put(f"digest {number} {board.rank}", digest)
    key = f"alike {number}"
    if board.rank == 0:
        board.put(key, "; ".join(_differences(board, number, plain, digest)[:_MOST]))
    found = board.wait(key, "rank 0")
    if found:
        raise JobError(
            f"the processes are not alike: {found}; start all with the same job, code and data"
        )


def _differences(board: Board, number: int, mine: Mapping[str, str], digest: str) -> list[str]:
    """What differs from rank 0, once all have said what they are about to do."""
    digests: dict[int, str] = {0: digest}
    missing = set(range(1, board.world))

    def came() -> bool:
        for rank in sorted(missing):
            found = board.look(f"digest {number} {rank}")
            if found is not None:
                digests[rank] = found
                missing.discard(rank)
        return not missing

    patiently(came, board, lambda: f"rank {min(missing)}")
    found = []
    for rank in sorted(rank for rank, one in digests.items() if one != digest):
        theirs = json.loads(board.wait(f"facts {number} {rank}", f"rank {rank}"))
        names = [n for n in dict.fromkeys([*mine, *theirs]) if mine.get(n) != theirs.get(n)]
        found += [
            f"{n} is {_shown(theirs.get(n))} on rank {rank} and {_shown(mine.get(n))} on rank 0"
            for n in names
        ]
    return found


def _shown(text: str | None) -> str:
    return "missing" if text is None else text[:_SHORT] + "..." * (len(text) > _SHORT)


def facts_of(ctx: Context, **more: Any) -> Facts:
    """What a run is about to do, as far as processes must not differ in it.

    Args:
        ctx: the state of the run.
        more: what the caller knows beside.
    """
    facts: Facts = {"world size": ctx.world_size, "seed": ctx.seed, **more}
    facts["num_epochs"], facts["num_steps"] = ctx.num_epochs, ctx.num_steps
    facts |= {"step": ctx.position.global_step, "device": ctx.device.type}
    facts |= {f"job key {n!r}": v for n, v in _flat(ctx.storage.get("job", {}), "")}
    facts |= _of_plugins(ctx)
    facts |= _of_data(ctx)
    facts |= _of_model(ctx)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {**facts, "versions": versions, "default dtype": str(torch.get_default_dtype())}


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _OF_A_MACHINE:
                yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name.removeprefix("plugins."), value


def _of_plugins(ctx: Context) -> Facts:
    """Which there are, how they were declared, their options and their code."""
    members = [m for m in ctx.bus.members.values() if not m.core]
    facts: Facts = {"plugins": [m.name for m in members]}
    for member in members:
        kind, name = type(member.plugin), f"plugin {member.name!r}"
        facts[f"class of {name}"] = f"{kind.__module__}.{kind.__qualname__}"
        facts[f"place of {name}"] = asdict(member.declared)
        facts[f"distribution of {name}"] = getattr(member.plugin, SOURCE, "")
        facts[f"code of {name}"] = code_of(kind)
        facts |= {f"option {n!r} of {name}": v for n, v in _options_of(member.plugin)}
    return facts


def _options_of(plugin: object) -> Iterator[tuple[str, Any]]:
    """Plain values that the constructor took and the plugin keeps under their names."""
    with suppress(TypeError, ValueError):
        for name in inspect.signature(type(plugin)).parameters:
            if any(word in name for word in _OF_A_RANK):
                continue
            value = getattr(plugin, name, getattr(plugin, f"_{name}", ...))
            if isinstance(value, _PLAIN):
                yield name, value


def code_of(thing: Any) -> str:
    """A digest of the file in which a class or function stands; empty where there is none."""
    with suppress(TypeError, OSError):
        file = inspect.getsourcefile(inspect.unwrap(thing))
        if file is not None:
            return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
    return ""


def _of_data(ctx: Context) -> Facts:
    """Tasks, the lengths of the loaders and data sets, and the sizes of batches."""
    steps = ctx.data
    facts: Facts = {"accumulate": getattr(steps, "accumulate", 1)}
    facts["tasks"], facts["steps per epoch"] = (
        list(getattr(steps, "tasks", ())),
        ctx.steps_per_epoch,
    )
    loaders = ctx.data_loader if isinstance(ctx.data_loader, Mapping) else {None: ctx.data_loader}
    for task, loader in loaders.items():
        of = "the data" if task is None else f"the data of task {task!r}"
        facts[f"length of {of} in batches"] = _length(loader)
        if _is_of_all(loader):
            facts[f"length of {of} in samples"] = _length(getattr(loader, "dataset", None))
        facts[f"batch size of {of}"] = getattr(loader, "batch_size", None)
        facts[f"kind of {of}"] = type(loader).__name__
    return facts


def _is_of_all(loader: Any) -> bool:
    """Whether every process has the whole data set, of which a sampler gives it its part."""
    samplers = (getattr(loader, name, None) for name in ("sampler", "batch_sampler"))
    return any(hasattr(one, name) for one in samplers for name in ("num_replicas", "world"))


def _length(thing: Any) -> int | None:
    with suppress(TypeError, NotImplementedError):
        return len(thing)
    return None


def _of_model(ctx: Context) -> Facts:
    """Parameters and buffers by name, and how the optimizer treats them."""
    facts: Facts = {"class of the model": type(ctx.model).__qualname__}
    facts["code of the model"] = code_of(type(ctx.model))
    modules = ctx.all_modules
    named = {**dict(modules.named_parameters()), **dict(modules.named_buffers())}
    shapes = {
        n: [list(t.shape), str(t.dtype), t.requires_grad]
        for n, t in named.items()
        if not is_lazy(t)
    }
    facts["tensors of the model"] = list(named)
    facts["shapes of the model"] = shapes
    optimizer: Any = ctx.optimizer
    if optimizer is not None:
        facts["optimizer"] = type(optimizer).__qualname__
        facts["optimizer's groups"] = [
            {
                k: v if isinstance(v, _PLAIN) else len(v) if k == "params" else None
                for k, v in group.items()
            }
            for group in optimizer.param_groups
        ]
    return facts
