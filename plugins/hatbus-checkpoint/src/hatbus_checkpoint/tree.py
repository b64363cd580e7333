"""State trees as JSON and tensors, and back, bit for bit. Reading one never runs anything.

JSON holds what JSON can hold; everything else is a mapping with one key that starts with ``$``::

    (1, 2)            {"$tuple": [1, 2]}
    {0: "a"}          {"$dict": [[0, "a"]]}
    nan               {"$float": "7ff8000000000000"}          the bits of the double
    torch.ones(1000)  {"$tensor": "state/w"}                  a tensor in the file beside
    a DTensor         {"$tensor": {"parts": "state/w"}}       its parts in files of the processes
    torch.tensor(3.)  {"$tensor": {"dtype": "F32", "shape": [], "data": "AABAQA=="}}
    a numpy array     {"$numpy": ...}                         as a tensor

A tensor that is met twice is stored once and comes back as one.
"""

from __future__ import annotations

import base64
import math
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, Final

import numpy as np
import torch

from hatbus.errors import CheckpointError, SaveError
from hatbus.parallel import is_shard
from hatbus_checkpoint.tensor_file import DTYPES, NAMES, as_bytes, check_storable

Tensors = dict[str, torch.Tensor]
INLINE: Final = 8192
"""Tensors of at most so many bytes stand in the JSON itself."""
MOST_DEEP: Final = 100
ACCEPTED: Final = (
    "accepted: dict, list, tuple, set, deque, str, bytes, int, float, bool, None, tensors, "
    "numpy arrays"
)


def encode(tree: Any, *, inline: int = INLINE) -> tuple[Any, Tensors]:
    """A state tree as JSON data and the tensors that stand beside it.

    Raises:
        SaveError: something in it cannot be stored; the message says where it is.
    """
    encoder = _Encoder(inline)
    return encoder.encode(tree, ()), encoder.tensors


def decode(data: Any, tensors: Mapping[str, Any], *, mapped: bool = False) -> Any:
    """The state tree that ``encode`` was given.

    Args:
        data: the JSON data.
        tensors: what stands beside it.
        mapped: give tensors as they stand there, of which nothing may have been read yet, and
            not copies.

    Raises:
        CheckpointError: this is not what ``encode`` makes.
    """
    try:
        return _Decoder(tensors, mapped=mapped).decode(data)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        what = "it is nested too deep" if isinstance(error, RecursionError) else repr(error)
        raise CheckpointError(f"a state tree cannot be read: {what:.200}") from error


class _Encoder:
    """Walks a tree; keeps the path for messages and names, and what was met for sharing."""

    def __init__(self, inline: int) -> None:
        self.tensors: Tensors = {}
        self._inline = inline
        self._keys: dict[Any, str] = {}
        self._shards: dict[int, str] = {}

    def encode(self, value: Any, path: tuple[str, ...]) -> Any:
        if len(path) > MOST_DEEP:
            raise SaveError(f"state at {_at(path)!r:.200} is nested too deep, or contains itself")
        if value is None or type(value) in (bool, str, int):
            return value
        if type(value) is float:
            return value if abs(value) < float("inf") else {"$float": _bits(value)}
        found = self._container(value, path)
        if found is not None:
            return found
        if isinstance(value, torch.Tensor):
            spread = is_shard(value)
            return {"$tensor": self._shard(value, path) if spread else self._tensor(value, path)}
        if isinstance(value, (np.ndarray, np.generic)):
            return {"$numpy": self._numpy(value, path), "scalar": isinstance(value, np.generic)}
        for tag, kind, write in _SIMPLE:
            if isinstance(value, kind):
                return {tag: write(value)}
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        raise SaveError(f"state at {_at(path)!r} is a {name}; {ACCEPTED}")

    def _container(self, value: Any, path: tuple[str, ...]) -> Any:
        """A list, tuple, set or mapping; None for anything else."""
        kind = type(value)
        if kind in (list, tuple, torch.Size):
            items = [self.encode(v, (*path, str(i))) for i, v in enumerate(value)]
            return items if kind is list else {_SEQUENCES[kind]: items}
        if kind is deque:
            items = [self.encode(v, (*path, str(i))) for i, v in enumerate(value)]
            return {"$deque": items, "maxlen": value.maxlen}
        if kind in (set, frozenset):
            items = [self.encode(v, (*path, "{}")) for v in value]
            return {_SEQUENCES[kind]: sorted(items, key=repr)}
        if kind is dict and all(type(k) is str and not k.startswith("$") for k in value):
            return {k: self.encode(v, (*path, k)) for k, v in value.items()}
        if kind in (dict, OrderedDict):
            pairs = [
                [self.encode(k, (*path, "a key")), self.encode(v, (*path, str(k)))]
                for k, v in value.items()
            ]
            return {"$dict" if kind is dict else "$ordered": pairs}
        return None

    def _numpy(self, value: Any, path: tuple[str, ...]) -> Any:
        try:
            return self._tensor(torch.from_numpy(np.array(value, order="C")), path)
        except TypeError as error:
            raise SaveError(
                f"state at {_at(path)!r} is a numpy {value.dtype}; {ACCEPTED}"
            ) from error

    def _shard(self, tensor: torch.Tensor, path: tuple[str, ...]) -> Any:
        """A tensor that is spread over processes; every one finds the same key for it."""
        check_storable(tensor, _at(path))
        if id(tensor) not in self._shards:
            self._shards[id(tensor)] = self._stored(tensor, path)
        return {"parts": self._shards[id(tensor)]}

    def _stored(self, tensor: torch.Tensor, path: tuple[str, ...]) -> str:
        key = _at(path)
        while key in self.tensors or key == "__metadata__":
            key += "~"
        self.tensors[key] = tensor
        return key

    def _tensor(self, tensor: torch.Tensor, path: tuple[str, ...]) -> Any:
        check_storable(tensor, _at(path))
        tensor = tensor.detach()
        strides = _strides(tensor)
        if tensor.numel() * tensor.element_size() <= self._inline:
            data = base64.b64encode(as_bytes(tensor)).decode()
            found = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data": data}
            return found | ({"stride": strides} if strides else {})
        same = identity(tensor)
        if same not in self._keys:
            self._keys[same] = self._stored(tensor, path)
        key = self._keys[same]
        return {"key": key, "stride": strides} if strides else key


class _Decoder:
    def __init__(self, tensors: Mapping[str, Any], *, mapped: bool) -> None:
        self._tensors, self._mapped = tensors, mapped
        self._made: dict[str, torch.Tensor] = {}

    def decode(self, data: Any) -> Any:
        if isinstance(data, list):
            return [self.decode(v) for v in data]
        if not isinstance(data, dict):
            return data
        tag = next(iter(data), "")
        if not tag.startswith("$"):
            return {k: self.decode(v) for k, v in data.items()}
        if tag in ("$tensor", "$numpy", "$deque"):
            return self._with_more(data, tag)
        if tag in _FROM_PAIRS:
            return _FROM_PAIRS[tag]((self.decode(k), self.decode(v)) for k, v in data[tag])
        items = [self.decode(v) for v in data[tag]] if tag in _MAKERS else data[tag]
        return (_MAKERS.get(tag) or _READ[tag])(items)

    def _with_more(self, data: dict[str, Any], tag: str) -> Any:
        """What stands under a tag together with something else."""
        if tag == "$deque":
            return deque(map(self.decode, data[tag]), data["maxlen"])
        tensor = self._tensor(data[tag])
        if tag == "$tensor":
            return tensor
        found = tensor.clone().numpy() if self._mapped else tensor.numpy()
        return found[()] if data["scalar"] else found

    def _tensor(self, data: Any) -> torch.Tensor:
        if isinstance(data, dict) and "data" in data:
            raw = bytearray(base64.b64decode(data["data"], validate=True))
            dtype = DTYPES[data["dtype"]]
            flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0).byte()
            flat = flat.view(dtype)
            return _laid_out(flat.reshape(data["shape"]), data.get("stride"))
        if isinstance(data, dict) and "parts" in data:
            return self._tensors[data["parts"]]  # type: ignore[no-any-return]  # perhaps in parts
        key = data if isinstance(data, str) else data["key"]
        if key not in self._made:
            strides = None if isinstance(data, str) else data["stride"]
            found = self._tensors[key] if self._mapped else self._tensors[key].clone()
            self._made[key] = _laid_out(found, strides)
        return self._made[key]


def identity(tensor: torch.Tensor) -> Any:
    """Equal for two tensors that are the same memory seen in the same way."""
    if tensor.numel() == 0:
        return id(tensor)
    where = (tensor.device, tensor.data_ptr(), tensor.dtype)
    return (*where, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg())


def _strides(tensor: torch.Tensor) -> list[int] | None:
    """The strides of a dense tensor that is laid out in another order, such as channels last.

    Also where a size of 1 leaves them no meaning: which routine multiplies it hangs on them.
    """
    shape = tensor.shape
    if 1 not in shape and tensor.is_contiguous():
        return None
    mine = tensor.stride()
    usual = [math.prod(max(n, 1) for n in shape[place + 1 :]) for place in range(len(shape))]
    if list(mine) == usual or mine != torch.empty_like(tensor, device="meta").stride():
        return None
    return list(mine)


def _laid_out(tensor: torch.Tensor, strides: list[int] | None) -> torch.Tensor:
    if strides is None:
        return tensor
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
    if tensor.numel() and (min(strides) < 0 or span != tensor.numel()):
        raise ValueError(f"strides {strides} do not fit shape {tuple(tensor.shape)}")
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def _at(path: tuple[str, ...]) -> str:
    return "/".join(path)


def _bits(value: float) -> str:
    return struct.pack(">d", value).hex()


_SEQUENCES: Final[dict[type[Any], str]] = {
    tuple: "$tuple",
    torch.Size: "$size",
    set: "$set",
    frozenset: "$frozenset",
}
_FROM_PAIRS: Final[dict[str, Callable[[Any], Any]]] = {"$dict": dict, "$ordered": OrderedDict}
_MAKERS: Final[dict[str, Callable[[Any], Any]]] = {tag: kind for kind, tag in _SEQUENCES.items()}
_SIMPLE: Final[tuple[tuple[str, type[Any], Callable[[Any], Any]], ...]] = (
    ("$bytes", bytes, lambda v: base64.b64encode(v).decode()),
    ("$complex", complex, lambda v: [_bits(v.real), _bits(v.imag)]),
    ("$dtype", torch.dtype, lambda v: str(v).removeprefix("torch.")),
    ("$device", torch.device, str),
    ("$path", PurePath, str),
)
_READ: Final[dict[str, Callable[[Any], Any]]] = {
    "$float": lambda v: struct.unpack(">d", bytes.fromhex(v))[0],
    "$bytes": lambda v: base64.b64decode(v, validate=True),
    "$complex": lambda v: complex(*(struct.unpack(">d", bytes.fromhex(x))[0] for x in v)),
    "$dtype": lambda v: {str(t): t for t in DTYPES.values()}[f"torch.{v}"],
    "$device": torch.device,
    "$path": Path,
}
