"""Checkpoints for others: HAT's ``.pth.tar``, one ``.safetensors`` file; and HAT's read in."""

from __future__ import annotations

import fnmatch
import io
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.errors import CheckpointError, SaveError
from hatbus.log import log
from hatbus.loop import RAW
from hatbus_checkpoint import durable, model_state
from hatbus_checkpoint.as_built import AsBuilt, as_built
from hatbus_checkpoint.compare import warner
from hatbus_checkpoint.parts import Parts, whole_of
from hatbus_checkpoint.restore import Saved
from hatbus_checkpoint.sharded.placing import Placing
from hatbus_checkpoint.snapshot import plugin_stem
from hatbus_checkpoint.tensor_file import chunks_of

if TYPE_CHECKING:
    from hatbus.loop import Context
    from hatbus_checkpoint.folder import CheckpointFolder, Entry
    from hatbus_checkpoint.snapshot import Snapshot

_SHOWN: Final = 3


_STATES: Final = ("state_dict", "model_state_dict", "model")
"""Where files of others keep the weights beside other things; HAT's is the first."""


def to_single(saved: Saved, target: Path, weights: str = RAW, only: Sequence[str] = ()) -> None:
    """Writes weights as one safetensors file; shared tensors stand under every name.

    Args:
        saved: the checkpoint.
        target: the file.
        weights: ``"raw"``, or the plugin whose averages take the place of the raw weights.
        only: shell patterns of the names to write, such as ``"*lora_*"``; all without one.

    Raises:
        CheckpointError: it holds no such averages, or a pattern matches nothing.
        SaveError: the disk failed.
    """
    tensors = tensors_in(saved.model())
    if weights != RAW:
        tensors |= averages_of(saved, weights, tensors)
    _replace(target, chunks_of(picked(tensors, only), {"format": "pt"}))


def tensors_in(state: Mapping[str, Any]) -> dict[str, torch.Tensor | Parts]:
    """What of a state dict is a tensor, perhaps in parts."""
    return {n: v for n, v in state.items() if isinstance(v, (torch.Tensor, Parts))}


def picked(
    tensors: dict[str, torch.Tensor | Parts], only: Sequence[str]
) -> dict[str, torch.Tensor | Parts]:
    """The tensors whose names match a pattern; all without one.

    Raises:
        CheckpointError: a pattern matches nothing.
    """
    for pattern in only:
        if not fnmatch.filter(tensors, pattern):
            names = ", ".join(map(repr, list(tensors)[:_SHOWN]))
            raise CheckpointError(f"--only is {pattern!r}, which matches no name; such as {names}")
    wanted = {name for pattern in only or ("*",) for name in fnmatch.filter(tensors, pattern)}
    return {name: tensor for name, tensor in tensors.items() if name in wanted}


def write_weights(folder: CheckpointFolder, kind: str, taken: Snapshot, entry: Entry) -> None:
    """Writes a save's raw weights under a fixed name beside the checkpoints.

    Args:
        folder: of the checkpoints.
        kind: ``"last"`` or ``"best"``.
        taken: what was saved.
        entry: the checkpoint, from which parts of other processes are read.

    Raises:
        OSError: the disk failed.
    """
    path = folder.path / f"{folder.prefix}weights-{kind}.safetensors"
    durable.replace_file(path, weight_chunks(entry) if taken.shards else _chunks_of(taken))


def _chunks_of(taken: Snapshot) -> Iterator[memoryview]:
    return chunks_of(taken.parts["model"][1], {"format": "pt"})


def weight_chunks(entry: Entry) -> Iterator[memoryview]:
    """The bytes of a file with a checkpoint's raw weights; shared tensors stand there once."""
    saved = Saved(entry)
    aliases = saved.aliases()
    tensors = {n: v for n, v in tensors_in(saved.model()).items() if n not in aliases}
    return chunks_of(tensors, {"format": "pt"})


def averages_of(
    saved: Saved, name: str, raw: Mapping[str, torch.Tensor | Parts]
) -> dict[str, torch.Tensor | Parts]:
    """The averages that a plugin saved, by the names and in the types of the raw weights.

    Raises:
        CheckpointError: it saved none.
    """
    states = saved.plugins()
    known = {n: s["averages"] for n, s in states.items() if isinstance(s, dict) and "averages" in s}
    if name not in known:
        offered = ", ".join(map(repr, [RAW, *known]))
        raise CheckpointError(f"--weights is {name!r}; {saved.path.name!r} holds {offered}")
    with saved.using(plugin_stem(name)):
        found, updates = known[name], states[name].get("updates", 1)
        options = next(p for p in saved.manifest["plugins"] if p["name"] == name).get("options")
        if not found or updates < (options or {}).get("start_step", 0):
            raise CheckpointError(
                f"plugin {name!r} had no averages yet in {saved.path.name!r}; export another"
            )
        of_shared = {id(raw[n]): value for n, value in found.items() if n in raw}
        return {n: of_shared[id(v)].to(v.dtype) for n, v in raw.items() if id(v) in of_shared}


def to_hat(saved: Saved, target: Path) -> None:
    """Writes HAT's file: ``state_dict``, ``optimizer`` in torch's own form, ``epoch``, ``step``.

    Raises:
        SaveError: the disk failed.
    """
    progress = saved.manifest["progress"]
    file = io.BytesIO()
    whole = {
        "epoch": progress["epoch"],
        "step": progress["step"],
        "global_step": progress["global_step"],
        "state_dict": {name: whole_of(value) for name, value in saved.model().items()},
        "optimizer": torchs_own(Placing({}, ()).of_plugin(saved.tree("optim"))),
    }
    torch.save(whole, file)
    _replace(target, [file.getbuffer()])


def torchs_own(saved: dict[str, Any] | None) -> dict[str, Any] | None:
    """An optimizer's state by number, as ``Optimizer.state_dict`` gives it."""
    if saved is None:
        return None
    numbers: dict[str, int] = {}
    groups = []
    for group in saved["groups"]:
        mine = [numbers.setdefault(name, len(numbers)) for name in group["params"]]
        groups.append({**group, "params": mine})
    state = {numbers[name]: value for name, value in saved["state"].items()}
    return {"state": state, "param_groups": groups}


def read_hat(path: Path) -> dict[str, Any]:
    """Reads HAT's file; only tensors and plain data are accepted, nothing in it is run.

    Raises:
        CheckpointError: it is another kind of file, or holds more than data.
    """
    found = _data_in(path)
    if not isinstance(found, dict) or not isinstance(found.get("state_dict"), dict):
        raise CheckpointError(f"{str(path)!r} holds no 'state_dict'; accepted: a file of HAT's")
    return found


def state_in(path: Path) -> dict[str, Any]:
    """The weights in a file that ``torch.save`` wrote: a state dict, or HAT's file.

    Raises:
        CheckpointError: it is another kind of file, or holds more than data.
    """
    found = _data_in(path)
    if isinstance(found, dict):
        inner = next((found[n] for n in _STATES if isinstance(found.get(n), dict)), found)
        if inner and all(isinstance(n, str) for n in inner):
            tensors = [v for v in inner.values() if isinstance(v, torch.Tensor)]
            if tensors and (inner is not found or len(tensors) == len(inner)):
                return dict(inner)
    raise CheckpointError(
        f"{str(path)!r} holds no state dict; accepted: one by itself, or under "
        f"{', '.join(map(repr, _STATES))}"
    )


def _data_in(path: Path) -> Any:
    """What ``torch.save`` wrote, if it is data alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd kinds of pickle, which are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a garbled pickle can raise anything
        line = str(error).partition("\n")[0]
        raise CheckpointError(f"{str(path)!r} cannot be read: {line:.200}") from error


def start_from_hat(
    ctx: Context,
    path: Path,
    *,
    strict: bool,
    with_optimizer: bool = False,
    override: Collection[str] = (),
) -> None:
    """Gives a run the weights of HAT's file, and its optimizer when asked.

    Args:
        ctx: the run, at its start.
        path: the file.
        strict: refuse other names than the model's.
        with_optimizer: take the optimizer's state and options too.
        override: options of the optimizer that stay this run's: ``"optimizer.lr"``; ``"all"``.

    Raises:
        CheckpointError: the file cannot be used.
    """
    found = read_hat(path)
    model_state.give(ctx.model, found["state_dict"], strict=strict)
    log.info("weights from %r; the run starts at its first step", str(path))
    if not found.get("optimizer") or ctx.optimizer is None:
        if with_optimizer:
            raise CheckpointError(f"{str(path)!r} holds no optimizer; leave out hat_optimizer")
        return
    if with_optimizer:
        _take_optimizer(ctx, ctx.optimizer, found["optimizer"], path, override)
    else:
        log.info(
            "its optimizer is left out (lr %s); checkpoint's option hat_optimizer = true takes it",
            _first_lr(found["optimizer"]),
        )


def _take_optimizer(
    ctx: Context,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    path: Path,
    override: Collection[str],
) -> None:
    """Gives the optimizer the state of HAT's file, and says which options it changes."""
    built = as_built(ctx)
    before = AsBuilt(optimizer).settings()
    try:
        optimizer.load_state_dict(state)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the optimizer in {str(path)!r} does not fit: {error!s:.200}; build it as it was, or "
            "leave out hat_optimizer"
        ) from error
    for name in built.options:
        if "all" in override or f"optimizer.{name}" in override:
            built.override(optimizer, name)
    after = AsBuilt(optimizer).settings()
    changed = [
        f"{key.removeprefix('optimizer.')} {value!r} -> {after[key]!r}"
        for key, value in before.items()
        if value != after[key]
    ]
    told = ", ".join(changed) or "its options are the same"
    warner(ctx)("the optimizer is that of %r: %s", str(path), told)


def _first_lr(state: Any) -> Any:
    """The lr that a file of HAT's names, as its schedule starts from it where there is one."""
    try:
        group = state["param_groups"][0]
        return group.get("initial_lr", group["lr"])
    except (AttributeError, IndexError, KeyError, TypeError):
        return "unknown"


def _replace(target: Path, chunks: Any) -> None:
    try:
        durable.replace_file(target, chunks)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SaveError(f"cannot write {str(target)!r}: {reason}; choose another path") from error
