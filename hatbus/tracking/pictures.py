"""Images and histograms as plain files and numbers, so that they can wait for a service."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

BINS = 64


def png(image: Tensor) -> bytes:
    """An image as a PNG file (ISO/IEC 15948).

    Args:
        image: (C, H, W) with 1, 3 or 4 channels, or (H, W); 0..1, or whole numbers 0..255.

    Raises:
        ValueError: another shape.
    """
    pixels = image.detach().cpu()
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4):
        pixels = pixels.permute(1, 2, 0)
    elif pixels.ndim == 2:
        pixels = pixels.unsqueeze(-1)
    else:
        raise ValueError(f"an image has the shape CHW or HW, not {tuple(image.shape)}")
    if pixels.is_floating_point():
        pixels = (pixels.float().nan_to_num().clamp(0, 1) * 255).round()
    array = pixels.clamp(0, 255).to("cpu").numpy().astype(np.uint8)
    height, width, channels = array.shape
    kind = {1: 0, 3: 2, 4: 6}[channels]
    rows = np.concatenate(  # each row begins with its filter, 0: none
        [np.zeros((height, 1), np.uint8), array.reshape(height, width * channels)], axis=1
    )
    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def histogram(values: Tensor) -> tuple[list[int], list[float]]:
    """Counts (bins,) and edges (bins + 1,) of the finite values of a tensor."""
    own = values.detach().cpu().double().clone()  # a tensor that numpy has can never be resized
    array = own.numpy().ravel()
    counts, edges = np.histogram(array[np.isfinite(array)], BINS)
    return counts.tolist(), edges.tolist()
