"""Which plugin of a run writes which file, so that no two write the same."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError

if TYPE_CHECKING:
    from pathlib import Path

    from hatbus.loop.context import Context

_WRITTEN: Final = "core.written"


def forget_files(ctx: Context) -> None:
    """Forgets who writes what: a run goes on, perhaps with other plugins."""
    ctx.storage.pop(_WRITTEN, None)


def claim_file(ctx: Context, path: Path, plugin: object) -> bool:
    """Notes that a plugin writes a file, or a folder of its own, in this run.

    Args:
        ctx: of the plugin; in a validation that of the validation.
        path: of the file or folder.
        plugin: the instance on the bus.

    Returns:
        Whether it had noted so before, in this run: then it goes on in what it wrote.

    Raises:
        JobError: another plugin writes it.
    """
    owner = file_owner(ctx, path)
    if owner is not None and owner[0] is not plugin:
        raise JobError(
            f"plugins {owner[1]!r} and {_name(ctx, plugin)!r} both write {str(path)!r}; give one "
            "of them another path"
        )
    written = ctx.training.storage.setdefault(_WRITTEN, {})
    written[os.path.realpath(path)] = (plugin, _name(ctx, plugin))
    return owner is not None


def file_owner(ctx: Context, path: Path) -> tuple[Any, str] | None:
    """The plugin that writes a file in this run, and its name; None where nobody does."""
    written: dict[str, tuple[Any, str]] = ctx.training.storage.get(_WRITTEN, {})
    return written.get(os.path.realpath(path))


def instance_name(ctx: Context, plugin: object) -> str:
    """The name of an instance on the bus of its run; its class's where it is on none."""
    found = (name for name, one in ctx.bus.members.items() if one.plugin is plugin)
    return next(found, type(plugin).__name__)


def _name(ctx: Context, plugin: object) -> str:
    """The instance's name, with its validation's before it."""
    return "/".join(filter(None, (ctx.part, instance_name(ctx, plugin))))
