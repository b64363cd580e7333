"""Safetensors files: written straight from the tensors' memory, read with the library.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length, little
endian; the header, JSON, padded with spaces; then the tensors' bytes without a gap.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from hatbus.errors import CheckpointError, SaveError

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
}
"""The format's names for the element types."""
NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
RESERVED: Final = "__metadata__"
_ALIGN: Final = 8


def chunks_of(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[memoryview]:
    """The bytes of a safetensors file; tensors on the CPU are not copied.

    Args:
        tensors: by name; any device and layout.
        metadata: texts for the header.

    Raises:
        SaveError: a name or a kind of tensor that the format cannot hold.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {RESERVED: dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in ordered:
        if name == RESERVED:
            raise SaveError(f"a tensor is named {RESERVED!r}, which safetensors keeps for itself")
        check_storable(tensor, name)
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
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
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path.name!r} is no safetensors file: {error!s:.200}") from error


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a tensor in row-major order, as bytes."""
    plain = tensor.detach().to("cpu").contiguous().reshape(-1)
    array: Any = plain.view(torch.uint8).numpy()
    return memoryview(array)


def check_storable(tensor: torch.Tensor, where: str) -> None:
    """Refuses tensors that the format cannot hold.

    Raises:
        SaveError: naming the tensor.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else tensor.layout
        raise SaveError(f"tensor {where!r} is {kind}; accepted: dense tensors with data")
    if tensor.dtype not in NAMES:
        known = ", ".join(sorted(str(d).removeprefix("torch.") for d in NAMES))
        raise SaveError(f"tensor {where!r} is of type {tensor.dtype}; accepted: {known}")
