"""A file of an earlier checkpoint that later ones may share."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from hatbus_checkpoint import durable

_NO_LINK: Final = {
    getattr(errno, name)
    for name in ("EACCES", "EMLINK", "ENOENT", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EPERM", "EXDEV")
    if hasattr(errno, name)
}
"""Why a link may be impossible although the disk is well: then the file is written once more."""


@dataclass(frozen=True)
class KeptFile:
    """One piece.

    Attributes:
        stem: that it is a piece of.
        name: inside a checkpoint; the same in each that shares it.
        path: where it is.
        entry: its size and sha256, as in the manifest.
        identity: what tells when it was replaced or written to since.
        digests: name to the hash of each of its tensors.
    """

    stem: str
    name: str
    path: Path
    entry: Mapping[str, Any]
    identity: tuple[int, ...]
    digests: Mapping[str, bytes]

    @classmethod
    def at(
        cls, checkpoint: Path, stem: str, name: str, entry: Mapping[str, Any], digests: Any
    ) -> Self:
        """The piece of a committed checkpoint.

        Raises:
            OSError: it is not there any more.
        """
        path = checkpoint / name
        return cls(stem, name, path, entry, _identity(path), digests)

    def link_into(self, folder: Path) -> bool:
        """Links to it in another folder; False where that cannot be, or it is not what it was.

        Raises:
            OSError: the disk failed.
        """
        target = folder / self.name
        try:
            if _identity(self.path) != self.identity:
                return False
            durable.make_folder(target.parent)
            durable.link_file(self.path, target)
            if _identity(target) == self.identity:
                return True
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
        durable.unlink_file(target)
        return False


def _identity(path: Path) -> tuple[int, ...]:
    found = os.stat(path)  # noqa: PTH116
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
