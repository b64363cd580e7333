"""A model's weights: the tensors by name, shared ones stored once, and loading them back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from hatbus.errors import CheckpointError
from hatbus.log import log
from hatbus.loop import Beside, plain_name
from hatbus.parallel import is_shard
from hatbus_checkpoint.parts import Parts
from hatbus_checkpoint.shapes import give_shapes, takes_its_own
from hatbus_checkpoint.sharded.placing import Placing
from hatbus_checkpoint.tree import Tensors, identity

if TYPE_CHECKING:
    from hatbus.loop import Context

_SHOWN = 10
"""Names of one kind that a message lists."""


def take(model: torch.nn.Module) -> tuple[Tensors, dict[str, str], dict[str, Any]]:
    """Tensors by name; name to the name that has its tensor, for shared ones; and the rest."""
    tensors: Tensors = {}
    aliases: dict[str, str] = {}
    extra: dict[str, Any] = {}
    first: dict[Any, str] = {}
    held = ids_of_parameters(model)
    for wrapped, value in model.state_dict().items():
        name = plain_name(wrapped)
        if is_lazy(value):  # nothing yet: it comes with the first batch
            continue
        if not isinstance(value, torch.Tensor):
            extra[name] = value
            continue
        same = first.setdefault(identity_of(wrapped, value, held), name)
        if same == name:
            tensors[name] = value
        else:
            aliases[name] = same
    return tensors, aliases, extra


def ids_of_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Every parameter's name to a number that shared ones have alike."""
    return {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}


def identity_of(name: str, value: torch.Tensor, ids: Mapping[str, int]) -> Any:
    """Equal for two of a model's tensors that are one.

    Of what is spread a process may have no memory at all; which parameter it is, all know.
    """
    return ids.get(name, id(value)) if is_shard(value) else identity(value)


def joined(
    tensors: Mapping[str, torch.Tensor], aliases: Mapping[str, str], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The state dict that ``take`` took apart."""
    return {**tensors, **{n: tensors[same] for n, same in aliases.items()}, **extra}


def give(
    model: torch.nn.Module,
    state: Mapping[str, Any],
    *,
    strict: bool,
    changed: Collection[str] = (),
    what: str = "the model",
    advice: str = "strict_match = false loads what fits",
) -> None:
    """Loads weights, after a look at all of them.

    Args:
        model: the model; what ``torch.compile`` has wrapped in it is looked through.
        state: name to tensor.
        strict: refuse missing and unexpected names; otherwise they are a warning.
        changed: names of buffers that the saved run had given another shape.
        what: the model is called.
        advice: what to do where strictness alone refuses it.

    Raises:
        CheckpointError: a table of what does not fit; no weight was touched.
    """
    wrapped = {plain_name(name): name for name in model.state_dict()}
    mine = {wrapped.get(name := plain_name(key), name): value for key, value in state.items()}
    grown = {wrapped.get(name := plain_name(key), _inside(name, wrapped)) for key in changed}
    rows = [row for row in differences(model, mine) if row[1] not in grown]
    fatal = [r for r in rows if strict or r[0] == "reshaped"]
    nothing = bool(rows) and not set(model.state_dict()) & set(mine)
    if fatal or nothing:
        hint = "" if nothing or not strict or not advice else f"; {advice}"
        raise CheckpointError(f"{what} is not the one that was saved{hint}\n{table(rows)}")
    if rows:
        log.warning("%s is not the one that was saved; loading what fits\n%s", what, table(rows))
    give_shapes(model, mine, grown)
    model.load_state_dict(Placing(model.state_dict(), ()).model(mine), strict=False)


def _inside(name: str, wrapped: Mapping[str, str]) -> str:
    """The name in the model of a buffer that is not there yet, by what lies beside it."""
    prefix = name.rpartition(".")[0]
    beside = next((w for plain, w in wrapped.items() if plain.rpartition(".")[0] == prefix), name)
    return f"{beside.rpartition('.')[0]}.{name.rpartition('.')[2]}".lstrip(".")


def give_beside(ctx: Context, state: Mapping[str, Any], *, strict: bool) -> None:
    """Loads what stands beside the model, after a look at all of it.

    A checkpoint of an older version holds nothing of it: then it stays as it was built.

    Raises:
        CheckpointError: a table of what does not fit.
    """
    beside = Beside(ctx.modules, ctx.model)
    mine = beside.state_dict()
    if mine and state:
        give(beside, state, strict=strict, what="what stands beside the model")
    elif mine or state:
        rows = differences(beside, state)
        where = "the run" if state else "the checkpoint"
        said = f"{where} holds nothing of what stands beside the model\n{table(rows)}"
        if strict:
            raise CheckpointError(said)
        log.warning("%s", said)


def differences(model: torch.nn.Module, state: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What does not fit: ``(missing | unexpected | reshaped, name, detail)``."""
    mine = model.state_dict()
    rows = [
        ("missing", n, shape_of(v)) for n, v in mine.items() if n not in state and not is_lazy(v)
    ]
    rows += [("unexpected", n, shape_of(v)) for n, v in state.items() if n not in mine]
    rows += [
        ("reshaped", n, f"{shape_of(state[n])} in the checkpoint, {shape_of(v)} in the model")
        for n, v in mine.items()
        if n in state and not is_lazy(v) and shape_of(state[n]) != shape_of(v)
    ]
    own = {row[1] for row in rows if row[0] == "reshaped" and takes_its_own(model, row[1], state)}
    return [row for row in rows if row[1] not in own]


def table(rows: list[tuple[str, str, str]]) -> str:
    """The differences as lines of text."""
    lines = []
    for kind in ("missing", "unexpected", "reshaped"):
        mine = [r for r in rows if r[0] == kind]
        lines += [f"  {kind:<11} {name}  {detail}" for _, name, detail in mine[:_SHOWN]]
        if len(mine) > _SHOWN:
            lines.append(f"  {kind:<11} and {len(mine) - _SHOWN} more")
    return "\n".join(lines)


def shape_of(value: Any) -> str:
    """The shape of a tensor in words; the kind of anything else."""
    is_tensor = isinstance(value, (torch.Tensor, Parts))
    return str(tuple(value.shape)) if is_tensor else type(value).__name__
