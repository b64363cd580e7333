"""The two formats of a written model: TorchScript (``.pt``) and ``torch.export`` (``.pt2``)."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.errors import SaveError
from hatbus_export.annotations import FILE

if TYPE_CHECKING:
    from torch import nn

Inputs = tuple[Any, ...] | Mapping[str, Any]


def called(model: Callable[..., Any], inputs: Inputs) -> Any:
    """The model's outputs: a tuple is unpacked, a mapping passed as keywords."""
    with torch.no_grad():
        return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def traced(model: nn.Module, inputs: Inputs, *, checked: bool = True) -> Any:
    """The model as TorchScript; ``checked``: traced again, to compare."""
    named = isinstance(inputs, Mapping)
    example = {"example_kwarg_inputs": dict(inputs)} if named else {"example_inputs": inputs}
    with torch.no_grad(), warnings.catch_warnings():
        # torch would like torch.export used instead; it is the other format
        warnings.simplefilter("ignore", DeprecationWarning)
        # the scales of torch's quantised modules are constants
        said = "Converting a tensor to a Python"
        warnings.filterwarnings("ignore", said, module=r"torch\.ao\.nn\..*")
        return torch.jit.trace(model, **example, strict=False, check_trace=checked)  # type: ignore[no-untyped-call]  # torch's


def exported(model: nn.Module, inputs: Inputs) -> Any:
    """The model's graph for inputs of these shapes."""
    named = isinstance(inputs, Mapping)
    arguments = ((), dict(inputs)) if named else (tuple(inputs), None)
    with torch.no_grad():
        return torch.export.export(model, *arguments)


def write_traced(model: nn.Module, inputs: Inputs, annotations: str, path: str) -> None:
    """Traces the model and writes TorchScript; ``torch.jit.load`` reads it."""
    program = traced(model, inputs)
    with Path(path).open("wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(program, file, _extra_files={FILE: annotations})


def write_exported(model: nn.Module, inputs: Inputs, annotations: str, path: str) -> None:
    """Exports the model's graph for inputs of these shapes; ``torch.export.load`` reads it."""
    content = io.BytesIO()  # where torch itself writes to a disk that is full, it aborts Python
    torch.export.save(exported(model, inputs), content, extra_files={FILE: annotations})
    with Path(path).open("wb") as file:
        file.write(content.getbuffer())


class _Nowhere(io.BytesIO):
    """A file that keeps nothing."""

    def write(self, data: Any, /) -> int:
        """Says that it wrote everything."""
        return len(data)


def try_traced(model: nn.Module, inputs: Inputs) -> None:
    """Does what ``write_traced`` does, but for the comparison and the file."""
    traced(model, inputs, checked=False)


def try_exported(model: nn.Module, inputs: Inputs) -> None:
    """Does what ``write_exported`` does, but for the file.

    Raises:
        ValueError: an output is a text: torch writes it, and cannot read it back.
    """
    program = exported(model, inputs)
    torch.export.save(program, _Nowhere())
    for output in program.graph_signature.output_specs:
        value = getattr(output.arg, "value", None)
        if isinstance(value, str):
            raise ValueError(f"output {value!r} is a text, which torch.export.load cannot read")  # noqa: TRY004 - of the model, not of an argument


TRIALS: Final[dict[str, Callable[[Any, Inputs], None]]] = {
    "pt": try_traced,
    "pt2": try_exported,
}
"""File suffix to what fails where its writer would."""
WRITERS: Final[dict[str, Callable[[Any, Inputs, str, str], None]]] = {
    "pt": write_traced,
    "pt2": write_exported,
}
"""File suffix to writer."""
DEFAULT: Final = ("pt",) if sys.version_info < (3, 14) else ("pt2",)
"""What is written by default: torch says that tracing may break in Python 3.14."""


def write_durably(
    write: Callable[[str], None], folder: Path, stem: str, suffix: str, *, with_hash: bool
) -> Path:
    """Writes a file under a temporary name, and gives it its own name when it is whole.

    Args:
        write: writes to a path.
        folder: where; made if it is not there.
        stem: the name without hash and suffix.
        suffix: without the dot.
        with_hash: put the first 8 characters of the content's sha256 in the name.

    Returns:
        The file's path.

    Raises:
        SaveError: the folder or file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=f".{suffix}", dir=folder)
        os.close(handle)
    except OSError as error:
        raise SaveError(f"save_traced: cannot write in {str(folder)!r}: {error}") from error
    temporary = Path(name)
    try:
        write(name)
        mark = f"-{_digest(temporary)[:8]}" if with_hash else ""
        _make_durable(temporary)
        return temporary.replace(folder / f"{stem}{mark}.{suffix}")
    except OSError as error:
        raise SaveError(f"save_traced: cannot write in {str(folder)!r}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_durable(path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # mkstemp makes files that nobody else may read
    with path.open("rb") as file:
        os.fsync(file.fileno())
