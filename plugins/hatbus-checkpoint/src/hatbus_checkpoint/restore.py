"""Gives a run the state of a checkpoint: nothing is touched before all of it was read."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from hatbus import rng
from hatbus.data import seed_of
from hatbus.errors import CheckpointError, did_you_mean
from hatbus.loop import plain_name
from hatbus.parallel import is_sharded
from hatbus_checkpoint import compare, model_state, optimizer_state, pieces, tensor_file
from hatbus_checkpoint.as_built import as_built
from hatbus_checkpoint.listing import lock_differences
from hatbus_checkpoint.parts import Parts
from hatbus_checkpoint.sharded.placing import Placing
from hatbus_checkpoint.sharded.shard_files import (
    OWN,
    ShardFiles,
    folder_of,
    is_of_rank,
    ranks_with,
)
from hatbus_checkpoint.tree import decode

if TYPE_CHECKING:
    import torch

    from hatbus.loop import Context
    from hatbus_checkpoint.folder import Entry


_GARBLED: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What plain code raises over data that has another form than it was written in."""


class Saved:
    """The contents of one verified checkpoint.

    Args:
        entry: the checkpoint.
        rank: the process that reads it, out of as many as saved it: it has what was its own.
        mapped: whether trees hold tensors as they stand in the files, of which nothing is read
            yet, and not copies.
    """

    def __init__(self, entry: Entry, rank: int | None = None, *, mapped: bool = False) -> None:
        self.path: Path = entry.path
        self.manifest = entry.manifest
        self._rank, self._mapped = rank, mapped

    @property
    def stems(self) -> list[str]:
        """What it holds, such as ``"optim"`` and ``"plugins/ema"``."""
        return [stem for stem in pieces.stems_of(self.manifest) if not is_of_rank(f"{stem}.json")]

    def tree(self, stem: str) -> Any:
        """The state tree of a stem; ``None`` when the checkpoint has none."""
        if f"{stem}.json" not in self.manifest["files"]:
            return None
        return decode(self._json(stem), self._tensors(stem), mapped=self._mapped)

    def model(self, stem: str = "model") -> dict[str, Any]:
        """The model's state dict; its tensors are mapped from the file.

        Args:
            stem: ``"beside"`` for that of the modules beside it; empty where none were.
        """
        more = self._json(stem) if f"{stem}.json" in self.manifest["files"] else {}
        with self.using(stem):
            extra = decode(more.get("extra", {}), {})
            found = model_state.joined(self._tensors(stem), more.get("aliases", {}), extra)
            return {plain_name(name): value for name, value in found.items()}

    def aliases(self) -> dict[str, str]:
        """Names of the model's tensors that are another one, to that one's."""
        more = self._json("model") if "model.json" in self.manifest["files"] else {}
        found: dict[str, str] = more.get("aliases", {})
        return found

    def changed_buffers(self) -> list[str]:
        """Names of the buffers that the run had given another shape than they were built with."""
        more = self._json("model") if "model.json" in self.manifest["files"] else {}
        with self.using("model"):
            return [plain_name(name) for name in more.get("changed", [])]

    def plugins(self) -> dict[str, Any]:
        """The states of the plugins by instance name."""
        stems = [s for s in self.stems if s.startswith("plugins/")]
        return {unquote(stem.removeprefix("plugins/")): self.tree(stem) for stem in stems}

    @contextmanager
    def using(self, stem: str) -> Iterator[None]:
        """Names the part of the checkpoint that is being used when it turns out to be garbled.

        Raises:
            CheckpointError: what is in it has not the form that was written.
        """
        try:
            yield
        except _GARBLED as error:
            raise CheckpointError(
                f"{stem!r} of checkpoint {self.path.name!r} is garbled: "
                f"{type(error).__name__}: {error!s:.200}; resume from another"
            ) from error

    def were_whole(self) -> set[str]:
        """Names of the model's tensors that are not in parts."""
        return {name for name, value in self.model().items() if not isinstance(value, Parts)}

    def _json(self, stem: str) -> Any:
        try:
            return json.loads((self.path / f"{self._own(stem)}.json").read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{stem}.json of {self.path.name!r} is garbled") from error

    def _tensors(self, stem: str) -> dict[str, Any]:
        whole: dict[str, Any] = {}
        for name in pieces.files_of(self.manifest, self._own(stem)):
            found = tensor_file.read(self.path / name)
            if not whole.keys().isdisjoint(found):
                raise CheckpointError(f"{name} of {self.path.name!r} has tensors of another piece")
            whole |= found
        ranks = ranks_with(stem, self.manifest["files"])
        if not ranks:
            return whole
        return {**whole, **ShardFiles(self.path, stem, ranks, self._rank).parts()}

    def _own(self, stem: str) -> str:
        """The stem of this process's own, where it has one that is not as on the first."""
        files, own = self.manifest["files"], f"{folder_of(self._rank or 0)}/{OWN}/{stem}"
        is_there = f"{own}.json" in files or f"{own}.safetensors" in files
        return own if self._rank is not None and is_there else stem


def saved_for(ctx: Context, entry: Entry) -> Saved:
    """A checkpoint as this process of a run reads it."""
    rank = ctx.rank if entry.manifest["world_size"] == ctx.world_size else None
    return Saved(entry, rank, mapped=is_sharded(ctx.model))


class ClassSource:
    """Everything that a run takes out of a checkpoint, read and compared, not yet given.

    Args:
        ctx: the run.
        saved: the checkpoint.
        drop: plugins whose saved state is left out.
        override: keys of the run that may differ.

    Raises:
        CheckpointError: it cannot be read, or was saved by another run than this one.
    """

    def __init__(
        self, ctx: Context, saved: Saved, drop: Collection[str] = (), override: Iterable[str] = ()
    ) -> None:
        lock = saved.manifest["plugins"]
        self.saved = saved
        live = {**ctx.model.state_dict(), **dict(ctx.all_modules.named_parameters())}
        self.placing = Placing(live, saved.were_whole())
        self.overridden = compare.check_same(ctx, saved.manifest, override)
        self.states = saved.plugins()
        for name, state in self.states.items():
            with saved.using(f"plugins/{name}"):
                self.states[name] = self.placing.of_plugin(state)
        for name in drop:
            if name not in self.states:
                raise CheckpointError(
                    f"there is no saved state of plugin {name!r} to leave out"
                    f"{did_you_mean(name, self.states)}"
                )
            del self.states[name]
        self.versions = compare.versions_of(lock)
        for line in lock_differences(lock, compare.plugins_of(ctx)):
            compare.warner(ctx)("since the checkpoint: %s", line)
        self.progress = saved.tree("progress")
        if self.progress is None:
            raise CheckpointError(
                f"{saved.path.name!r} holds weights only and cannot be resumed from; "
                "load them with `hatbus export`, or resume from another"
            )
        self.optimizer = saved.tree("optim")
        self.rank = rank_state(ctx, saved)
        with saved.using(f"rank-{ctx.rank}"):
            _check_places(ctx, saved, self.rank["data"])
            self._take_rank_parts(ctx)
        self.model, self.changed_buffers = saved.model(), saved.changed_buffers()
        self.beside = saved.model("beside")

    def give(self, ctx: Context, *, strict: bool) -> rng.RandomState | None:
        """Gives the run all of it.

        Returns:
            The random state to put back when the loop starts; None when the data plan does that,
            because an iteration over the data has to be opened first.

        Raises:
            CheckpointError: something in it does not fit, or has not the form that was written.
        """
        using = self.saved.using
        ctx.bus.load_state_dict(self.states, self.versions)
        with using("model"):
            model_state.give(ctx.model, self.model, strict=strict, changed=self.changed_buffers)
        with using("beside"):
            model_state.give_beside(ctx, self.beside, strict=strict)
        if ctx.optimizer is not None and self.optimizer is not None:
            self._give_optimizer(ctx, ctx.optimizer, strict=strict)
        with using("progress"):
            self._give_progress(ctx)
        with using(f"rank-{ctx.rank}"):
            return self._give_data(ctx)

    def _take_rank_parts(self, ctx: Context) -> None:
        """Puts what was this process's own into the plugins' states; a new process has none."""
        before = self.saved.manifest["world_size"]
        mine = self.rank.get("plugins", {})
        for name, part in ctx.bus.rank_parts(self.states).items():
            if before > ctx.world_size:
                what = "plugin %r goes on with what %d of %d processes gathered in it"
                compare.warner(ctx)(what, name, ctx.world_size, before)
            if name in mine or ctx.rank > 0:
                state = self.states[name]
                shared = {key: value for key, value in state.items() if key not in part}
                self.states[name] = {**shared, **mine.get(name, {})}

    def _give_optimizer(
        self, ctx: Context, optimizer: torch.optim.Optimizer, *, strict: bool
    ) -> None:
        """Gives the optimizer its state, but for the options that were overridden.

        Raises:
            CheckpointError: the state is of another class of optimizer.
        """
        built = as_built(ctx)
        if "optimizer" in self.overridden and type(optimizer).__name__ == built.kind:
            compare.warner(ctx)("the optimizer %s starts anew", built.kind)
            return
        with self.saved.using("optim"):
            # an older checkpoint has no names for what stands beside the model
            modules = ctx.all_modules if self.beside else ctx.model
            optimizer_state.give(modules, optimizer, self.optimizer, strict=strict)
        for key in self.overridden:
            name = key.removeprefix("optimizer.")
            if name != key:
                built.override(optimizer, name)

    def _give_progress(self, ctx: Context) -> None:
        progress = self.progress
        if ctx.scaler is not None and progress["scaler"] is not None:
            ctx.scaler.load_state_dict(progress["scaler"])
        position = ctx.position
        position.epoch, position.step, position.global_step = map(index, progress["position"])
        ctx.epoch_id, ctx.step_id, ctx.global_step_id = map(index, progress["last"])
        ctx.updates = index(progress["updates"])
        metrics = self.saved.manifest["metrics"]
        ctx.latest.update({k: float(v) if isinstance(v, str) else v for k, v in metrics.items()})

    def _give_data(self, ctx: Context) -> rng.RandomState | None:
        state: rng.RandomState = self.rank["rng"]
        with rng.fenced():
            rng.restore(state)  # what cannot be restored is better known now
        ctx.control.load_state_dict(self.rank.get("asked", {}))
        if ctx.position.step == 0:
            ctx.data.load_state_dict(self.rank["data"], _nothing)
            return state
        ctx.data.load_state_dict(self.rank["data"], lambda: rng.restore(state))
        return None


def rank_state(ctx: Context, saved: Saved) -> dict[str, Any]:
    """Random state and data position of this process; with more processes than before, new ones."""
    found = saved.tree(f"rank-{ctx.rank}")
    if found is None:
        found = {**saved.tree("rank-0"), "plugins": {}}
        with rng.fenced():
            rng.seed_all(seed_of("rank", ctx.seed, ctx.rank, saved.manifest["content"]))
            found["rng"] = rng.capture()
    state: dict[str, Any] = found
    return state


def _check_places(ctx: Context, saved: Saved, data: dict[str, Any]) -> None:
    """Refuses places in the data that other processes cannot go to.

    Raises:
        CheckpointError: a loader keeps its place itself, as one of another number of processes.
    """
    before, inside = saved.manifest["world_size"], saved.manifest["progress"]["step"] > 0
    own = [task for task, place in data.items() if "loader" in place]
    if before != ctx.world_size and inside and own:
        of = f" of task {own[0]!r}" if own[0] else ""
        raise CheckpointError(
            f"{saved.path.name!r} is of {before} processes in the middle of an epoch, and the "
            f"loader{of} keeps its place itself, as one of {before}: resume on {before} processes, "
            "or from a checkpoint between two epochs, or use hatbus.data.loader"
        )


def _nothing() -> None:
    """The random state is put back when the loop starts."""
