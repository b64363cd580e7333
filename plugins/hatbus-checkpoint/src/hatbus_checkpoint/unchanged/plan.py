"""Which tensors of a save are written, into which files, and which are linked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatbus_checkpoint import pieces
from hatbus_checkpoint.snapshot import Snapshot
from hatbus_checkpoint.unchanged.kept_file import KeptFile

if TYPE_CHECKING:
    from hatbus_checkpoint.tree import Tensors


@dataclass
class Plan:
    """Of one save.

    Attributes:
        linked: the files that are shared; they are in the new folder already.
        written: per stem that is in pieces, file name to the names of the tensors to write.
        digests: (stem, name) to hash, of those tensors that may be shared later.
        ahead: file name to size and sha256 of what was written already, while it was found out what
            stayed.
        index: what tells other tools where the model's tensors are; None where they are in one.
    """

    linked: list[KeptFile] = field(default_factory=list)
    written: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    digests: dict[tuple[str, str], bytes] = field(default_factory=dict)
    ahead: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    index: dict[str, Any] | None = None

    @property
    def split(self) -> dict[str, list[str]]:
        """Stem to its pieces, for the manifest."""
        shared = {stem: [k.name for k in self.linked if k.stem == stem] for stem in self.written}
        return {stem: sorted([*shared[stem], *files]) for stem, files in self.written.items()}

    @property
    def table(self) -> dict[str, Mapping[str, Any]]:
        """File name to size and sha256 of what is there already."""
        return {kept.name: kept.entry for kept in self.linked} | self.ahead

    def names_linked(self, but_of: Collection[str] = ()) -> set[tuple[str, str]]:
        """(stem, name) of the tensors that need not be read any more, of all stems but some."""
        return {(k.stem, n) for k in self.linked if k.stem not in but_of for n in k.digests}

    def to_write(self, taken: Snapshot) -> Snapshot:
        """The files that are to be written, as parts of their own."""
        parts: dict[str, tuple[Any, Tensors]] = {}
        for stem, (data, tensors) in taken.parts.items():
            if stem not in self.written:
                is_there = f"{stem}.safetensors" in self.ahead
                parts[stem] = (data, {} if is_there else tensors)
                continue
            if data is not None:
                parts[stem] = (data, {})
            for file, names in self.written[stem].items():
                if file in self.ahead:
                    continue
                parts[file.removesuffix(".safetensors")] = (None, {n: tensors[n] for n in names})
        if self.index is not None:
            parts["model.safetensors.index"] = (self.index, {})
        there = {name.removesuffix(".safetensors") for name in self.ahead}
        return Snapshot(parts, taken.rank, split={*self.written, *there})

    def files(self, stem: str, tensors: Tensors) -> dict[str, list[str]]:
        """File name to the names of its tensors, of those files of a stem that are not linked."""
        return self.written.get(stem, {f"{stem}.safetensors": list(tensors)} if tensors else {})

    def kept_in(self, checkpoint: Path, files: Mapping[str, Any]) -> list[KeptFile]:
        """The files that the next saves may share, when the checkpoint is committed.

        Raises:
            OSError: one is gone.
        """
        found = [(k.stem, k.name, k.digests) for k in self.linked]
        for stem, written in self.written.items():
            for name, names in written.items():
                if pieces.number_of(stem, name):
                    found.append((stem, name, {n: self.digests[stem, n] for n in names}))
        return [KeptFile.at(checkpoint, stem, name, files[name], d) for stem, name, d in found]
