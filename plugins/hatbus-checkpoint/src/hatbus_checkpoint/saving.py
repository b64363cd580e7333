"""One save: what it links, what it copies when it goes on in the background, and its writing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatbus.log import log
from hatbus.loop import Beside, plain_name
from hatbus_checkpoint import manifest
from hatbus_checkpoint.exchange import write_weights
from hatbus_checkpoint.sharded.saving import save
from hatbus_checkpoint.tensor_file import chunks_of

if TYPE_CHECKING:
    from torch import Tensor

    from hatbus.loop import Context
    from hatbus_checkpoint.folder import CheckpointFolder, Entry
    from hatbus_checkpoint.sharded.peers import Peers
    from hatbus_checkpoint.snapshot import Snapshot
    from hatbus_checkpoint.unchanged.plan import Plan
    from hatbus_checkpoint.unchanged.unchanged import Unchanged


@dataclass(frozen=True)
class Begun:
    """A save that is under way.

    Attributes:
        stem: of the checkpoint's name.
        taken: the state; of what is linked no tensors, once it is a copy.
        temporary: the folder with the links; None where there is none yet.
        plan: what is linked, and where the rest goes; None: all is written.
        error: why the links could not be made, which all processes have to learn.
    """

    stem: str
    taken: Snapshot
    temporary: Path | None = None
    plan: Plan | None = None
    error: Exception | None = None

    def copied(self, kept: dict[str, Tensor], *, with_model: bool) -> Begun:
        """The same with what is written in memory of its own, which training cannot change.

        Args:
            kept: buffers of an earlier copy, used again.
            with_model: the model's weights are wanted in any case.
        """
        whole = ("model",) if with_model else ()
        linked = self.plan.names_linked(but_of=whole) if self.plan else ()
        return replace(self, taken=self.taken.copied(kept, linked))

    def folder(self) -> Path | None:
        """The folder with the links, if there is one.

        Raises:
            Exception: they could not be made.
        """
        if self.error is not None:
            raise self.error
        return self.temporary


class Saves:
    """Writes the checkpoints of a run.

    Args:
        folder: of the checkpoints.
        hashed: put the content's hash into their names.
    """

    def __init__(self, folder: CheckpointFolder, *, hashed: bool) -> None:
        self._folder, self._hashed = folder, hashed
        self._unchanged: Unchanged | None = None

    def share(self, copies: int) -> None:
        """Writes only what is changed from now on, where the folder has hard links.

        Args:
            copies: see ``Unchanged``.
        """
        if not self._folder.has_links:
            log.warning(
                "checkpoint: incremental has no effect: in %r a file cannot have a second name "
                "(a hard link), so every save writes all",
                str(self._folder.path),
            )
        elif self._unchanged is None:
            from hatbus_checkpoint.unchanged.unchanged import Unchanged  # it needs xxhash

            self._unchanged = Unchanged(copies)

    def adopt(self, entry: Entry) -> None:
        """Takes note of the checkpoint that the run goes on from, which was just verified."""
        if self._unchanged is not None:
            self._unchanged.adopt(entry)

    def begin(
        self,
        stem: str,
        taken: Snapshot,
        frozen: Collection[tuple[str, str]],
        *,
        is_copied: bool = False,
    ) -> Begun:
        """Links what is unchanged; what is saved stands still meanwhile. Nothing is exchanged.

        What is spread over processes is written anew.

        Args:
            stem: of the checkpoint's name.
            taken: the state.
            frozen: see ``frozen_in``.
            is_copied: what is not linked will be copied, to be written in the background; else some
                of it may be written right now.
        """
        begun = Begun(stem, taken)
        if self._unchanged is None or taken.shards:
            return begun
        try:
            temporary = self._folder.begin(stem)
            parts = {name: tensors for name, (_, tensors) in taken.parts.items()}
            write = None if is_copied else partial(self._write_ahead, temporary)
            plan = self._unchanged.plan(parts, temporary, frozen, write)
        except Exception as error:  # noqa: BLE001 - raised in ``write``
            self._folder.abandon(stem)
            return replace(begun, error=error)
        return replace(begun, temporary=temporary, plan=plan)

    def _write_ahead(
        self, temporary: Path, files: Mapping[str, Mapping[str, Tensor]]
    ) -> Mapping[str, Mapping[str, Any]]:
        chunks = {n: partial(chunks_of, mine, {"format": "pt"}) for n, mine in files.items()}
        return self._folder.fill(temporary, chunks)

    def write(
        self,
        begun: Begun,
        fields: Mapping[str, Any],
        peers: Peers,
        afterwards: Callable[[Entry], Path],
    ) -> Path:
        """Writes the rest, and commits; see ``hatbus_checkpoint.sharded.saving.save``.

        Raises:
            SaveError: the disk failed, or a state cannot be stored; nothing is left.
            PeerError: so it was on another process.
        """
        plan, taken = begun.plan, begun.taken
        if plan is not None:
            taken = plan.to_write(taken)
        if plan is not None and plan.split:
            fields = {**fields, "format": manifest.SPLIT, "split": plan.split}

        def learn(entry: Entry) -> Path:
            if plan is not None and self._unchanged is not None:
                self._unchanged.learn(plan, entry)
            return afterwards(entry)

        return save(
            self._folder,
            begun.stem,
            taken,
            fields,
            peers,
            hashed=self._hashed,
            afterwards=learn,
            begun=begun.folder,
            linked=plan.table if plan else None,
        )


def frozen_in(ctx: Context) -> set[tuple[str, str]]:
    """(stem, name) of the parameters that are not trained, which will probably stay as they are."""
    found = set()
    for stem, module in (("model", ctx.model), ("beside", Beside(ctx.modules, ctx.model))):
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                found.add((stem, plain_name(name)))
    return found


def follow_up(
    folder: CheckpointFolder,
    entry: Entry,
    taken: Snapshot,
    marks: Collection[str],
    *,
    exported: bool | None,
) -> None:
    """Points to a checkpoint that is safe by now, and writes its weights for others.

    Args:
        folder: of the checkpoints.
        entry: the checkpoint.
        taken: what was saved.
        marks: what it is, beside ``"last"``.
        exported: ``weights_only_export``.

    Raises:
        OSError: the disk failed.
    """
    for kind in ("last", *marks):
        folder.point(kind, entry.path.name, progress=entry.manifest["progress"])
        if is_exported(kind, exported):
            write_weights(folder, kind, taken, entry)


def is_exported(mark: str, wanted: bool | None) -> bool:
    """Whether the weights of what is marked so are written for others."""
    return bool(wanted) or (wanted is None and mark != "last")
