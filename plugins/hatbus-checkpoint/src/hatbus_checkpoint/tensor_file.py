"""Safetensors files: written straight from the tensors' memory, read with the library.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length, little
endian; the header, JSON, padded with spaces; then the tensors' bytes without a gap. It has no
complex128: such a tensor is stored as pairs of F64, and named in the header's metadata.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from hatbus.errors import CheckpointError, SaveError
from hatbus.parallel import local_tensor
from hatbus_checkpoint.parts import Parts, whole_of

DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C128": torch.complex128,
}
"""The format's names for the element types, and one that it has not."""
for _name, _dtype in (("F8_E8M0", "float8_e8m0fnu"), ("F4", "float4_e2m1fn_x2")):
    if hasattr(torch, _dtype):  # newer than the oldest torch that is accepted
        DTYPES[_name] = getattr(torch, _dtype)
NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
RESERVED: Final = "__metadata__"
_PAIRS: Final = "complex128"
"""Key of the metadata: a JSON list of the tensors that stand there as pairs of real numbers."""
_ALIGN: Final = 8
_PLAIN: Final = (torch.Tensor, torch.nn.Parameter)


def chunks_of(
    tensors: Mapping[str, torch.Tensor | Parts], metadata: Mapping[str, str] | None = None
) -> Iterator[memoryview]:
    """The bytes of a safetensors file; tensors on the CPU are not copied.

    Args:
        tensors: by name; any device and layout. One in parts is read when its turn comes, and no
            two are in memory at a time.
        metadata: texts for the header.

    Raises:
        SaveError: a name or a kind of tensor that the format cannot hold.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    pairs = [name for name, tensor in ordered if tensor.dtype is torch.complex128]
    texts = {**(metadata or {}), **({_PAIRS: json.dumps(pairs)} if pairs else {})}
    header: dict[str, object] = {RESERVED: texts} if texts else {}
    offset = 0
    for name, tensor in ordered:
        if name == RESERVED:
            raise SaveError(f"a tensor is named {RESERVED!r}, which safetensors keeps for itself")
        check_storable(tensor, name)
        end = offset + tensor.numel() * tensor.element_size()
        dtype, shape = _as_stored(tensor)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    yield memoryview(struct.pack("<Q", len(text)) + text)
    for _, tensor in ordered:
        if tensor.numel():
            yield as_bytes(tensor)


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file; they are mapped from it, and copied only when they are changed.

    Raises:
        CheckpointError: it is no safetensors file.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            for name in json.loads((file.metadata() or {}).get(_PAIRS, "[]")):
                # A copy: the file's memory is aligned for real numbers only, and torch crashes.
                found[name] = torch.view_as_complex(found[name].clone())
            return found
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path.name!r} is no safetensors file: {error!s:.200}") from error


def as_bytes(tensor: torch.Tensor | Parts) -> memoryview:
    """The elements of a tensor in row-major order, as bytes; of one in parts it is read now.

    By DLPack, since ``Tensor.numpy`` forbids that the tensor is ever resized again.
    """
    array: Any = np.from_dlpack(flat_bytes(whole_of(tensor)))
    return memoryview(array)


def flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The same as a tensor of bytes on the host; of a contiguous one there no copy."""
    plain = tensor.detach().to("cpu")
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    flat = plain.contiguous().reshape(-1)
    if flat.stride(0) != 1:  # one element may have any stride and is contiguous all the same
        flat = flat.as_strided((flat.numel(),), (1,))
    return flat.view(torch.uint8)


def check_storable(tensor: torch.Tensor | Parts, where: str) -> None:
    """Refuses tensors that the format cannot hold.

    Raises:
        SaveError: naming the tensor.
    """
    kind = "" if isinstance(tensor, Parts) else _odd_kind(local_tensor(tensor))
    if kind:
        raise SaveError(f"tensor {where!r} is {kind}; accepted: dense tensors with data")
    if tensor.dtype not in NAMES:
        known = ", ".join(sorted(str(d).removeprefix("torch.") for d in NAMES))
        raise SaveError(f"tensor {where!r} is of type {tensor.dtype}; accepted: {known}")


def _odd_kind(tensor: torch.Tensor) -> str:
    """What a tensor is that has not plain memory of its own; empty for any other."""
    if tensor.layout is not torch.strided:
        return str(tensor.layout)
    if tensor.is_quantized or tensor.is_meta:
        return "meta" if tensor.is_meta else "quantized"
    if type(tensor) not in _PLAIN and hasattr(
        tensor, "__tensor_flatten__"
    ):  # made of other tensors, such as quantized ones
        return f"a {type(tensor).__module__}.{type(tensor).__qualname__}"
    return "a half of a byte" if NAMES.get(tensor.dtype) == "F4" and not tensor.ndim else ""


def _as_stored(tensor: torch.Tensor | Parts) -> tuple[str, list[int]]:
    """The element type and shape that stand in the header."""
    name, shape = NAMES[tensor.dtype], list(tensor.shape)
    if name == "C128":
        return "F64", [*shape, 2]
    if name == "F4":  # two to a byte, which is torch's element
        shape[-1] *= 2
    return name, shape
