"""The state of a run at one moment, taken apart into the files of a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch

from hatbus import rng
from hatbus.errors import SaveError
from hatbus.loop import RAW, Beside
from hatbus.parallel import is_shard, reshard
from hatbus_checkpoint import compare, model_state, optimizer_state
from hatbus_checkpoint.shapes import changed_buffers
from hatbus_checkpoint.sharded.placing import Part, part_of
from hatbus_checkpoint.tensor_file import chunks_of
from hatbus_checkpoint.tree import Tensors, encode
from hatbus_checkpoint.versions import versions

if TYPE_CHECKING:
    from hatbus.loop import Context
    from hatbus_checkpoint.stream import Chunks

_SCALARS = 16
"""Bytes: an optimizer's step counters stand in its JSON, everything larger in its tensors."""


class Snapshot:
    """What goes into the files: per stem JSON data and tensors.

    Args:
        parts: stem such as ``"plugins/ema"`` to (data or None, tensors).
        rank: the process whose state it is.
        shards: what is spread, where it was taken out of the parts before.
        split: stems whose tensors are in pieces, which are parts of their own.

    Attributes:
        parts: the same, but for the tensors that are spread over the processes.
        shards: stem to name to what this process has of one of those.
    """

    def __init__(
        self,
        parts: dict[str, tuple[Any, Tensors]],
        rank: int = 0,
        shards: dict[str, dict[str, Part]] | None = None,
        split: Collection[str] = (),
    ) -> None:
        self.rank, self.split = rank, split
        self.parts: dict[str, tuple[Any, Tensors]] = {}
        self.shards: dict[str, dict[str, Part]] = shards or {}
        for stem, (data, tensors) in parts.items():
            found = {n: part_of(t, f"{stem}:{n}") for n, t in tensors.items() if is_shard(t)}
            self.parts[stem] = (data, {n: t for n, t in tensors.items() if n not in found})
            if found:
                self.shards[stem] = found

    @property
    def size(self) -> int:
        """Bytes of all tensors that this process writes."""
        whole = [t for _, tensors in self.parts.values() for t in tensors.values()]
        parts = [p.local for found in self.shards.values() for p in found.values() if p.is_written]
        return sum(t.numel() * t.element_size() for t in (*whole, *parts))

    def files(self) -> dict[str, Chunks]:
        """Relative path to what gives the file's bytes, largest kind first."""
        found: dict[str, Chunks] = {}
        for stem, (data, tensors) in self.parts.items():
            if tensors or (stem == "model" and stem not in self.split):
                found[f"{stem}.safetensors"] = partial(chunks_of, tensors, {"format": "pt"})
            if data is not None:
                found[f"{stem}.json"] = partial(_as_text, data)
        return found

    def copied(
        self, kept: dict[str, torch.Tensor], without: Collection[tuple[str, str]] = ()
    ) -> Snapshot:
        """The same in memory of its own, which training cannot change.

        Args:
            kept: buffers of an earlier copy, used again where they fit and added to; those of what
                is left out are given free.
            without: (stem, name) of the tensors to leave out.
        """
        parts = {}
        for stem, (data, tensors) in self.parts.items():
            mine = {}
            for name, tensor in tensors.items():
                key = f"{stem}:{name}"
                if (stem, name) in without:
                    kept.pop(key, None)
                else:
                    mine[name] = _copied(tensor, key, kept)
            parts[stem] = (data, mine)
        shards = {
            stem: {n: p._replace(local=_copied(p.local, f"{stem}:{n}", kept)) for n, p in d.items()}
            for stem, d in self.shards.items()
        }
        return Snapshot(parts, self.rank, shards)


def take(ctx: Context, *, weights_only: bool = False) -> Snapshot:
    """The state of the whole run, as rank 0 writes it; of another rank what it alone has.

    Nothing is exchanged. Where tensors are spread, every rank also has what should be alike on all,
    for the writing to find out whether it is.

    Raises:
        SaveError: something cannot be stored, or other weights than the raw ones are shown.
    """
    if ctx.weights.current != RAW:
        raise SaveError(
            f"a checkpoint was asked for while the model shows {ctx.weights.current!r} weights; "
            "save before or after, never inside a weight view"
        )
    reshard(ctx.model)
    parts = dict(_model_parts(ctx))
    if weights_only:
        return Snapshot(parts)
    parts |= _beside_parts(ctx)
    if ctx.optimizer is not None:
        parts["optim"] = encode(
            optimizer_state.take(ctx.all_modules, ctx.optimizer), inline=_SCALARS
        )
    parts["progress"] = encode(progress(ctx))
    states = ctx.bus.state_dict()
    parts |= dict(_plugin_parts(states))
    mine = {f"rank-{ctx.rank}": rank_state(ctx, states)}
    whole = Snapshot(parts | mine, ctx.rank)
    return whole if ctx.rank == 0 or whole.shards else Snapshot(mine, ctx.rank)


def plugin_stem(name: str) -> str:
    """The file stem of a plugin's state; any instance name makes a plain file name."""
    return "plugins/" + quote(name, safe="")[:200]


def progress(ctx: Context) -> dict[str, Any]:
    """Counters of the run, and the gradient scaler."""
    position = ctx.position
    return {
        "position": (position.epoch, position.step, position.global_step),
        "last": (ctx.epoch_id, ctx.step_id, ctx.global_step_id),
        "updates": ctx.updates,
        "scaler": None if ctx.scaler is None else ctx.scaler.state_dict(),
    }


def rank_state(ctx: Context, states: dict[str, Any]) -> tuple[Any, Tensors]:
    """What this rank has of its own, encoded.

    Random state, data position, and what was asked for and not done yet inside an epoch; over
    several processes also its part of plugins' states.
    """
    mine = {"rng": rng.capture(), "data": ctx.data.state_dict(ctx)}
    asked = ctx.control.state_dict() if ctx.position.step else {}
    if asked:
        mine["asked"] = asked
    if ctx.world_size > 1:
        mine["plugins"] = ctx.bus.rank_parts(states)
    return encode(mine)


def scalars(latest: dict[str, Any]) -> dict[str, float | int | str]:
    """The published values that are single numbers; JSON has no NaN, so it becomes a text."""
    found: dict[str, float | int | str] = {}
    for name, value in latest.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()  # noqa: PLW2901 - only at a save
        if isinstance(value, (int, float)):
            found[name] = value if math.isfinite(value) else str(value)
    return found


def _as_text(data: Any) -> list[bytes]:
    return [(json.dumps(data) + "\n").encode()]


def _model_parts(ctx: Context) -> Iterator[tuple[str, tuple[Any, Tensors]]]:
    taken = model_state.take(ctx.model)
    yield _weights("model", taken, changed_buffers(ctx, [*taken[0], *taken[1]]))


def _beside_parts(ctx: Context) -> Iterator[tuple[str, tuple[Any, Tensors]]]:
    beside = Beside(ctx.modules, ctx.model)
    if beside.state_dict():
        yield _weights("beside", model_state.take(beside), [])


def _weights(
    stem: str, taken: tuple[Tensors, dict[str, str], dict[str, Any]], changed: list[str]
) -> tuple[str, tuple[Any, Tensors]]:
    tensors, aliases, extra = taken
    data = None
    if aliases or extra or changed:
        data = {"aliases": aliases, "extra": encode(extra, inline=1 << 62)[0], "changed": changed}
    return stem, (data, tensors)


def _plugin_parts(states: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, Tensors]]]:
    for name, state in states.items():
        try:
            yield plugin_stem(name), encode(state)
        except SaveError as error:
            raise SaveError(f"plugin {name!r}: {error}") from error


def _copied(tensor: torch.Tensor, key: str, kept: dict[str, torch.Tensor]) -> torch.Tensor:
    found = kept.get(key)
    same = found is not None and (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
    if found is None or not same or found.stride() != tensor.stride():
        found = kept[key] = torch.empty_like(tensor, device="cpu", requires_grad=False)
    found.copy_(tensor.detach())
    return found


def facts(ctx: Context) -> dict[str, Any]:
    """What a manifest says of the run at this moment."""
    position = ctx.position
    return {
        "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "progress": {
            "epoch": position.epoch,
            "step": position.step,
            "global_step": position.global_step,
            "updates": ctx.updates,
        },
        "plan": compare.plan_of(ctx),
        "world_size": ctx.world_size,
        "finite": "core.finite_weights" in ctx.bus.members,
        "settings": compare.settings_of(ctx),
        "plugins": compare.plugins_of(ctx),
        "metrics": scalars(ctx.latest),
    }
