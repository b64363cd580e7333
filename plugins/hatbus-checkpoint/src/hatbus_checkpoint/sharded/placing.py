"""Tensors of a run as parts for the files, and saved tensors as parts of this run's.

A model that is spread over the processes (``fully_shard``) has DTensors: every process its part.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from hatbus.errors import CheckpointError, SaveError
from hatbus.loop import plain_name
from hatbus.parallel import is_shard, local_tensor
from hatbus_checkpoint.parts import Box, Parts, box_of, whole_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

_REPLICATED: Final = "R"


class Part(NamedTuple):
    """What this process has of a tensor that is spread.

    Attributes:
        local: its part, perhaps without elements.
        shape: of the whole.
        box: where the part lies in it.
        placements: how it is spread, as texts.
        is_written: whether this process is the one of several with the same part that writes it.
    """

    local: torch.Tensor
    shape: tuple[int, ...]
    box: Box
    placements: tuple[str, ...]
    is_written: bool


def part_of(tensor: Any, where: str) -> Part:
    """This process's part of a DTensor.

    Raises:
        SaveError: it is spread in a way that has no parts, such as unfinished sums.
    """
    texts = tuple(map(_text_of, tensor.placements))
    if None in texts:
        raise SaveError(
            f"tensor {where!r} is spread as {tuple(tensor.placements)}; accepted: Shard, Replicate"
        )
    local, coordinate = local_tensor(tensor), tensor.device_mesh.get_coordinate()
    if coordinate is None:
        empty = Box((0,) * tensor.dim(), (0,) * tensor.dim())
        return Part(local, tuple(tensor.shape), empty, texts, is_written=False)  # type: ignore[arg-type]
    box = _box_of(tensor)
    first = all(at == 0 for at, text in zip(coordinate, texts, strict=True) if text == _REPLICATED)
    return Part(local, tuple(tensor.shape), box, texts, first)  # type: ignore[arg-type]


def is_spread(value: Any) -> bool:
    """Whether a value is a tensor of which every process has its part."""
    return isinstance(value, torch.Tensor) and is_shard(value)


def _text_of(placement: Any) -> str | None:
    """A placement as ``"R"`` or ``"S<dim>"``; None for what is neither."""
    if placement.is_replicate():
        return _REPLICATED
    dim = getattr(placement, "dim", None)
    return None if dim is None or placement.is_partial() else f"S{dim}"


def _box_of(tensor: Any) -> Box:
    (chunk,) = tensor.__create_chunk_list__()  # what torch tells its own checkpoints
    return Box(tuple(chunk.offsets), tuple(chunk.sizes))


def spread(value: torch.Tensor | Parts, live: Any) -> Any:
    """A saved tensor spread as one of the run's of the same shape; only this part is read."""
    found: Any = torch.empty_like(live.detach(), dtype=value.dtype, requires_grad=False)
    if live.device_mesh.get_coordinate() is not None:
        local_tensor(found).copy_(box_of(value, _box_of(live)))
    return found


class Placing:
    """How the tensors of a checkpoint become those of this run, on this process.

    Args:
        live: the model's tensors by name, as its ``state_dict`` has them.
        were_whole: names of those that the checkpoint has whole.
    """

    def __init__(self, live: Mapping[str, Any], were_whole: Collection[str]) -> None:
        self._live = {plain_name(name): value for name, value in live.items()}
        self._were_whole = were_whole
        shards = [value for value in self._live.values() if is_spread(value)]
        self._mesh: Any = shards[0].device_mesh if shards else None

    @property
    def is_spread(self) -> bool:
        """Whether the run's model is spread over its processes."""
        return self._mesh is not None

    def model(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A model's state dict."""
        live = {name: self._live.get(plain_name(name)) for name in state}
        return {name: self._like(value, live[name]) for name, value in state.items()}

    def of_optimizer(self, tree: Any, parameter: Any) -> Any:
        """What an optimizer keeps of a parameter: tensors of its shape are spread as it is."""
        return _mapped(tree, lambda value, _: self._kept(value, parameter))

    def of_plugin(self, tree: Any) -> Any:
        """A plugin's state: what is of a parameter's name and shape is spread as it is.

        Unless the parameter was spread in the checkpoint, and the plugin kept it whole in spite of
        that.
        """

        def given(value: torch.Tensor | Parts, name: str) -> Any:
            live = self._live.get(plain_name(name))
            follows = isinstance(value, Parts) or plain_name(name) in self._were_whole
            return self._kept(value, live if follows else None)

        return _mapped(tree, given)

    def _kept(self, value: torch.Tensor | Parts, live: Any) -> Any:
        """The same for what is kept and not copied: never the memory of a file."""
        found: torch.Tensor = self._like(value, live)
        return found.clone() if found is value and self.is_spread else found

    def _like(self, value: Any, live: Any) -> Any:
        """A tensor like one of the run's; of another shape as it was, on this run's processes."""
        if not isinstance(value, (torch.Tensor, Parts)) or is_spread(value):
            return value
        has_shape = isinstance(live, torch.Tensor) and not is_lazy(live)
        if has_shape and value.shape == live.shape:
            return spread(value, live) if is_spread(live) else whole_of(value)
        if isinstance(value, Parts) and self._mesh is not None:
            return self._as_it_was(value)
        return whole_of(value)

    def _as_it_was(self, value: Parts) -> Any:
        from torch.distributed.tensor import Replicate, Shard, distribute_tensor

        if len(value.placements) != self._mesh.ndim:
            raise CheckpointError(
                f"{value.key!r} was spread over a mesh of {len(value.placements)} dimensions, this "
                f"run has one of {self._mesh.ndim}; resume with the same, or without sharding"
            )
        how = [Replicate() if t == _REPLICATED else Shard(int(t[1:])) for t in value.placements]
        return distribute_tensor(value.whole(), self._mesh, how, src_data_rank=None)


def _mapped(tree: Any, given: Callable[[Any, str], Any]) -> Any:
    """A state tree with every tensor replaced; one that is there twice stays one."""
    made: dict[int, Any] = {}

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, (torch.Tensor, Parts)):
            if id(value) not in made:
                made[id(value)] = given(value, name)
            return made[id(value)]
        if type(value) in (dict, OrderedDict):
            return type(value)((key, walk(one, str(key))) for key, one in value.items())
        if type(value) in (list, tuple):
            return type(value)(walk(one, name) for one in value)
        if isinstance(value, deque):
            return deque((walk(one, name) for one in value), value.maxlen)
        return value

    return walk(tree, "")
