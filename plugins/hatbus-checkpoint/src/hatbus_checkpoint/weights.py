"""The weights in any file or folder that holds some, by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from hatbus.errors import CheckpointError
from hatbus.loop import RAW
from hatbus.runs import run_folder
from hatbus_checkpoint import manifest, tensor_file
from hatbus_checkpoint.exchange import averages_of, state_in, tensors_in
from hatbus_checkpoint.folder import CheckpointFolder, Entry, newest_run, prefixes_in, save_dir_in
from hatbus_checkpoint.locate import locate
from hatbus_checkpoint.parts import whole_of
from hatbus_checkpoint.restore import Saved

_MARKED: Final = re.compile(
    r"(?P<prefix>.*)checkpoint-(?P<kind>last|best(-\w+)?)(\.pth\.tar|\.json)?"
)


def weights_of(path: Path | str, view: str = RAW) -> dict[str, Any]:
    """The weights in a checkpoint of hatbus's or HAT's, or in a ``.safetensors`` file.

    Args:
        path: a checkpoint; a folder of them (the newest is taken) or of a run; such a folder and
            ``/best`` or ``/last``; ``<folder>/<prefix>checkpoint-best``, with or without HAT's
            ``.pth.tar``, for the one that is marked so; HAT's ``.pth.tar``; a ``.safetensors``; a
            state dict that ``torch.save`` wrote.
        view: ``"raw"``, or the plugin whose averages take the place of the raw weights.

    Returns:
        Name to tensor, as a model's ``state_dict`` has them.

    Raises:
        CheckpointError: there is nothing of the kind, it is damaged, or holds no such averages.
    """
    return {name: whole_of(value) for name, value in lazy_weights_of(path, view).items()}


def lazy_weights_of(path: Path | str, view: str = RAW) -> dict[str, Any]:
    """The same, but tensors that are in parts are not read yet."""
    entry = entry_at(path)
    return _of_file(Path(path), view) if entry is None else _in_checkpoint(entry, view)


def entry_at(path: Path | str) -> Entry | None:
    """The checkpoint that a path means, verified; None where it is a file of weights.

    Raises:
        CheckpointError: there is nothing of the kind, or it is damaged.
    """
    found = run_folder(Path(path))
    if not found.exists():
        found = _marked(found)
    if found.is_file():
        return None
    if found.is_dir() and not (found / manifest.NAME).exists():
        found = newest_run(found) or found
    entry = locate(found, _folder(found))
    if entry is None:
        raise CheckpointError(f"there is no checkpoint in {str(path)!r}")
    return entry


def weights_in(source: Entry | Path | str, view: str = RAW) -> dict[str, Any]:
    """The weights of a checkpoint, or in a file.

    Args:
        source: the checkpoint, verified; or the file.
        view: as in ``weights_of``.

    Raises:
        CheckpointError: it cannot be read, or holds no such averages.
    """
    if not isinstance(source, Entry):
        return _of_file(Path(source), view)
    return {name: whole_of(value) for name, value in _in_checkpoint(source, view).items()}


def _in_checkpoint(entry: Entry, view: str) -> dict[str, Any]:
    saved = Saved(entry)
    state = saved.model()
    if view != RAW:
        state |= averages_of(saved, view, tensors_in(state))
    return state


def _of_file(path: Path, view: str) -> dict[str, Any]:
    if view != RAW:
        raise CheckpointError(f"{str(path)!r} holds raw weights only, no {view!r}")
    if path.suffix == ".safetensors":
        return dict(tensor_file.read(path))
    return state_in(path)


def _marked(path: Path) -> Path:
    """The checkpoint that is marked as a name says; else the path itself."""
    named = _MARKED.fullmatch(path.name)
    if named is None or not path.parent.is_dir():
        return path
    folder = CheckpointFolder(path.parent, named["prefix"])
    pointed = folder.pointed(named["kind"])
    if not pointed:
        raise CheckpointError(
            f"no checkpoint in {str(path.parent)!r} with prefix {named['prefix']!r} is marked "
            f"{named['kind']!r}; did the stage before end, and has it a metric that says which is "
            "best (mode and monitor_metric_key)?"
        )
    return path.parent / pointed


def _folder(path: Path) -> CheckpointFolder:
    """The folder of checkpoints that a path is or stands in, with the prefix that is there."""
    home = path if path.is_dir() else path.parent
    home = save_dir_in(home) if home.is_dir() else home
    prefixes = sorted(prefixes_in(home)) if home.is_dir() else []
    return CheckpointFolder(home, prefixes[0] if len(prefixes) == 1 else "")
