"""A model's outputs for a batch, taken apart: what belongs to each of its samples.

::

    scores[8, 10]                          row i: scores[i]
    {"boxes": b[8, 4], "loss": l[]}        row i: {"boxes": b[i]}; the loss belongs to no sample
    (mean[8, 2], spread[8, 2])             row i: [mean[i], spread[i]]
    [{"boxes": b0[5, 4]}, ...] * 8         row i: the list's entry i
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from hatbus.data import fields_of
from hatbus.errors import DataError

Row = Any
"""Nested dicts and lists of tensors, numbers and texts: what belongs to one sample."""
OUTPUT: Final = "output"
INDEX: Final = "index"
WAY: Final = "a plugin around write_outputs can put something else in their place (ctx.model_outs)"


def rows_of(part: Any, count: int, path: str = OUTPUT) -> tuple[list[Row] | None, list[str]]:
    """What of some outputs belongs to each sample of a batch.

    Args:
        part: the outputs, or a part of them.
        count: samples in the batch.
        path: how messages call it.

    Returns:
        A row for each sample, None when nothing belongs to one; and the parts that were left out.
    """
    if isinstance(part, (torch.Tensor, np.ndarray)):
        has_rows = part.ndim > 0 and part.shape[0] == count
        return ([*part] if has_rows else None), [] if has_rows else [path]
    if isinstance(part, list) and len(part) == count and not _are_columns(part, count):
        return part, []
    fields = part if isinstance(part, Mapping) else fields_of(part)
    if fields is not None:
        columns, lost = _columns({str(k): v for k, v in fields.items()}, count, path)
        return _joined(columns, count), lost
    if isinstance(part, (tuple, list)):
        columns, lost = _columns({str(i): v for i, v in enumerate(part)}, count, path)
        rows = _joined(columns, count)
        return (None if rows is None else [[*row.values()] for row in rows]), lost
    return None, [] if part is None else [path]


def _are_columns(part: list[Any], count: int) -> bool:
    """Whether a list holds one tensor for each output, and not one for each sample."""
    return all(isinstance(one, torch.Tensor) and one.shape[:1] == (count,) for one in part)


def _columns(
    parts: Mapping[str, Any], count: int, path: str
) -> tuple[dict[str, list[Row]], list[str]]:
    columns, lost = {}, []
    for name, part in parts.items():
        rows, more = rows_of(part, count, f"{path}.{name}")
        lost += more
        if rows is not None:
            columns[name] = rows
    return columns, lost


def _joined(columns: Mapping[str, list[Row]], count: int) -> list[Row] | None:
    if not columns:
        return None
    return [{name: rows[i] for name, rows in columns.items()} for i in range(count)]


def as_json(row: Row, path: str = OUTPUT) -> Any:
    """A row as JSON has it; NaN and infinities, which JSON lacks, as "nan", "inf" and "-inf".

    Raises:
        DataError: something in it is neither number, text, tensor nor made of such.
    """
    if isinstance(row, torch.Tensor):
        return _finite(torch.view_as_real(row).tolist() if row.is_complex() else row.tolist())
    if isinstance(row, (np.ndarray, np.generic)):
        return _finite(row.tolist())
    if row is None or isinstance(row, (str, bool, int)):
        return row
    if isinstance(row, float):
        return _finite(row)
    fields = row if isinstance(row, Mapping) else fields_of(row)
    if fields is not None:
        return {str(name): as_json(one, f"{path}.{name}") for name, one in fields.items()}
    if isinstance(row, (list, tuple, set, frozenset)):
        return [as_json(one, path) for one in row]
    raise DataError(
        f"predictions: {path} of a sample is a {type(row).__name__}; accepted: numbers, texts, "
        f"tensors, and lists and dicts of them; {WAY}"
    )


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def as_tensors(row: Row, path: str = OUTPUT) -> dict[str, torch.Tensor]:
    """A row as tensors by name, as a file of tensors has them: ``output``, ``output.boxes``.

    Raises:
        DataError: something in it is no number.
    """
    fields = row if isinstance(row, Mapping) else fields_of(row)
    if fields is None and isinstance(row, (list, tuple)) and not _are_numbers(row):
        fields = dict(enumerate(row))
    if fields is not None:
        parts = (as_tensors(one, f"{path}.{name}") for name, one in fields.items())
        return {name: tensor for part in parts for name, tensor in part.items()}
    try:
        return {path: torch.as_tensor(row).detach().cpu()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"predictions: {path} of a sample is a {type(row).__name__}, which a file of tensors "
            f"cannot hold; choose format='jsonl'"
        ) from error


def _are_numbers(row: Any) -> bool:
    return all(isinstance(one, (int, float)) for one in row)
