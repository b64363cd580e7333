"""``Checkpoint``: saves a run so that it can go on bit for bit, and resumes it.

Source: ``hat.callbacks.Checkpoint``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from hatbus import hookimpl, option_values, plugin, rng
from hatbus.insight import marks_every
from hatbus.log import log
from hatbus.loop import is_done
from hatbus_checkpoint import compare, marks, snapshot
from hatbus_checkpoint.agree import check_is_shared
from hatbus_checkpoint.as_built import as_built
from hatbus_checkpoint.best import Best
from hatbus_checkpoint.bests import Bests
from hatbus_checkpoint.exchange import start_from_hat
from hatbus_checkpoint.folder import CheckpointFolder, Entry
from hatbus_checkpoint.loading import load
from hatbus_checkpoint.locate import AUTO, locate, wanted_first, wanted_place
from hatbus_checkpoint.lock import FolderLock
from hatbus_checkpoint.options import check_options
from hatbus_checkpoint.restore import ClassSource, saved_for
from hatbus_checkpoint.retention import check_kept, retire
from hatbus_checkpoint.saving import Begun, Saves, follow_up, frozen_in, is_exported
from hatbus_checkpoint.sharded.locating import locate_together
from hatbus_checkpoint.sharded.peers import Peers
from hatbus_checkpoint.storable import check_optimizer, check_state
from hatbus_checkpoint.writer import Writer

if TYPE_CHECKING:
    from hatbus.loop import Context


@plugin(stage="checkpoint")
class Checkpoint:
    """Saves and resumes a run.

    Args:
        save_dir: folder of the checkpoints; in a job by default in the run's, under its name.
        name_prefix: of their names; runs with different prefixes may share a folder.
        save_interval: save every so many epochs or steps; None: not by interval.
        interval_by: ``"epoch"`` or ``"step"``.
        save_on_train_end: save when the run is over.
        strict_match: refuse a checkpoint whose names are not the model's; else load what fits.
        mode: ``"min"`` or ``"max"``: which value of the metric is best.
        monitor_metric_key: the published value that decides on best, or the last part of its name
            (``"NDS"`` for ``"val/NDS"``): the last that was published before a save, of an earlier
            step where a save comes before the validation. A save without a new value since the one
            before is not compared.
        best_refer_metric: a metric object with ``compute()`` or ``get()``, or a config of one; a
            value published under its name comes first, of several names ``monitor_metric_key``.
            With ``mode`` alone: the first of ``val_metrics``, else the validation's only metric.
        task_sampler: its state is saved too, if it has one.
        save_hash: put the first 8 characters of the content's sha256 into the name.
        keep_last: keep the newest so many (2 or more); None: all.
        keep_best: keep the best so many besides.
        bests: further metrics that each have a best of their own, by name: a table of ``mode``,
            ``monitor_metric_key`` and perhaps ``keep_best``, marked ``best-<name>``.
        save_seconds: save also when so many seconds passed since the last save.
        weights_only_export: also write the raw weights as ``{prefix}weights-best.safetensors`` when
            a save is the best; True: as ``weights-last`` too, at every save; False: neither.
        resume: ``"auto"``: go on from the newest good checkpoint in ``save_dir``, if there is
            any; ``"last"``, ``"best"``: from the one that is marked so; or the path of a
            checkpoint, or of a ``.pth.tar`` of HAT's, whose weights it starts from. ``resume`` in
            the job's ``[run]`` comes first.
        async_save: write in the background; training waits only for a copy of the state.
        incremental: write only tensors that changed since an earlier save; files with the others
            are shared with it, by hard links. A checkpoint is whole by itself all the same.
        copies: with ``incremental``: 2: a checkpoint shares nothing with the one before it, so one
            damaged file never spoils both; 1: all may share one file, on half the disk.
        drop_plugin_state: plugins whose saved state is left out.
        override: what may differ from the run that saved (the error message names it).
        hat_optimizer: from a ``.pth.tar`` take the optimizer's state and options as well, but for
            those in ``override``.

    Raises:
        JobError: a value that cannot be used.
    """

    state_version = 1
    instead_of_two = (
        "one of them saves for all metrics: give it bests = {loss = {mode = 'min', "
        "monitor_metric_key = 'val/loss'}} for a further best"
    )

    def __init__(
        self,
        save_dir: str,
        name_prefix: Optional[str] = "",  # noqa: UP045 - the page's own signature
        save_interval: Optional[int] = 1,  # noqa: UP045
        interval_by: Optional[str] = "epoch",  # noqa: UP045
        save_on_train_end: Optional[bool] = True,  # noqa: UP045
        strict_match: Optional[bool] = False,  # noqa: UP045
        mode: Optional[str] = None,  # noqa: UP045
        monitor_metric_key: Optional[str] = None,  # noqa: UP045
        best_refer_metric: Any = None,
        task_sampler: Any = None,
        save_hash: bool = True,
        *,
        keep_last: int | None = None,
        keep_best: int | None = None,
        bests: Mapping[str, Mapping[str, Any]] | None = None,
        save_seconds: float | None = None,
        weights_only_export: bool | None = None,
        resume: str | None = None,
        async_save: bool = False,
        incremental: bool = False,
        copies: int = 2,
        drop_plugin_state: Sequence[str] = (),
        override: Sequence[str] = (),
        hat_optimizer: bool = False,
    ) -> None:
        folder = option_values.path("checkpoint: save_dir", save_dir)
        interval_by = interval_by or "epoch"
        check_options(name_prefix or "", save_interval, interval_by, save_seconds, copies)
        check_kept(keep_last, keep_best, mode)
        option_values.names("checkpoint: drop_plugin_state", drop_plugin_state)
        option_values.names("checkpoint: override", override)
        self.folder = CheckpointFolder(folder, name_prefix or "")
        self.best = Best(mode, monitor_metric_key, best_refer_metric)
        self.bests = Bests(self.best, bests)
        self.save_interval, self.interval_by = save_interval, interval_by
        self.save_on_train_end, self.strict_match = save_on_train_end, bool(strict_match)
        self.task_sampler, self.save_hash = task_sampler, save_hash
        self.keep_last, self.keep_best = keep_last, keep_best
        self.save_seconds, self.weights_only_export = save_seconds, weights_only_export
        self.resume = None if resume is None else wanted_place("checkpoint: resume", resume)
        self.async_save, self.hat_optimizer = async_save, hat_optimizer
        self.incremental, self.copies = incremental, copies
        self.drop_plugin_state, self.override = tuple(drop_plugin_state), tuple(override)
        self._run, self._lineage, self._parent = uuid.uuid4().hex, 0, ""
        self._saved_at, self._path = -1, Path()
        self._next_time = 0.0
        self._kept: dict[str, Any] = {}
        self._has_seen_update = False
        self._writer = Writer(in_background=False)
        self._saves = Saves(self.folder, hashed=bool(save_hash))
        self._peers: Peers
        self._lock: FolderLock | None = None
        self._found: Entry | None = None
        self._random: rng.RandomState | None = None

    load = staticmethod(load)

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Takes the folder, then resumes when that is wanted and the run is at its start."""
        check_state(ctx)
        if ctx.rank == 0:
            self.folder.probe()
            self._lock = FolderLock(self.folder.path, self.folder.prefix, self._run)
            self.folder.sweep()
        check_is_shared(ctx, self.folder.path)
        self._writer, self._peers = Writer(in_background=self.async_save), Peers(ctx)
        if self.incremental and ctx.rank == 0:
            self._saves.share(self.copies)
        self._saved_at = ctx.position.global_step
        as_built(ctx)
        wanted = wanted_first(ctx.storage.get("resume"), self.resume)
        if wanted and ctx.position.global_step == 0 and Path(wanted).is_file():
            start_from_hat(
                ctx,
                Path(wanted),
                strict=self.strict_match,
                with_optimizer=self.hat_optimizer,
                override=self.override,
            )
        elif wanted and ctx.position.global_step == 0:
            found = locate_together(wanted, self.folder, self._peers)
            if found is None:
                log.info("no checkpoint in %r; starting anew", str(self.folder.path))
            else:
                self._take_over(found, wanted)
                ctx.emit.load_checkpoint(ctx, found.path)
                if ctx.rank == 0 and found.manifest["run"] == self._run:
                    rankings = self.bests.rankings(self.folder, self.keep_best)
                    marks.mend(self.folder, self._run, rankings, self.weights_only_export)
        self._begin_lineage(ctx)
        self._next_time = time.monotonic() + (self.save_seconds or 0.0)

    @hookimpl(wrapper=True)
    def run_loop(self) -> Generator[None, Any, Any]:
        """Puts the random state back when everybody is prepared and the loop begins."""
        if self._random is not None:
            rng.restore(self._random)
            self._random = None
        return (yield)

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        """Saves when a step or some time is the interval."""
        if ctx.exception is not None:
            return
        if ctx.world_size == 1 and self._writer.is_finished():
            self._tell(ctx)  # of several processes each is done at another time
        if not self._has_seen_update and ctx.committed and ctx.optimizer is not None:
            self._has_seen_update = True  # most optimizers have a state only now
            check_optimizer(ctx.model, ctx.optimizer)
        if self.interval_by == "step" and self._is_due(ctx.global_step_id):
            self._save(ctx, self._interval())
        elif self.save_seconds is not None and time.monotonic() >= self._next_time:
            self._next_time = time.monotonic() + self.save_seconds
            if ctx.rank == 0:
                ctx.control.save(f"every {self.save_seconds:g} s")

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        """Saves when an epoch is the interval, and the epoch is really over."""
        over = ctx.exception is None and ctx.position.step == 0
        if over and self.interval_by == "epoch" and self._is_due(ctx.epoch_id):
            self._save(ctx, self._interval())

    def check_watched(self, ctx: Context) -> None:
        """Refuses a metric that nothing in the run publishes.

        Raises:
            JobError: it is so.
        """
        self.bests.check_watched(ctx)

    @hookimpl
    def on_log(self, logs: Mapping[str, Any]) -> None:
        """Notes that the metric that decides on best was published."""
        self.bests.hear(logs)

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Saves the end, waits until all is on the disk, and gives the folder free."""
        try:
            if ctx.exception is None and self.save_on_train_end:
                ctx.save("train end")
            self._tell(ctx)
            if ctx.exception is None:
                self.bests.look_back(ctx)
        finally:
            self._writer.close()
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    # ---- saving -------------------------------------------------------------------------------

    @hookimpl
    def save_checkpoint(self, ctx: Context, reason: str) -> Path:
        """Saves now, unless this very step is saved already.

        Returns:
            The checkpoint's folder; of one written in the background, without the hash.
        """
        step = ctx.position.global_step
        if step == self._saved_at:
            return self._path
        self._tell(ctx)
        judged, won = self.bests.weigh(ctx)
        frozen = frozen_in(ctx) if self.incremental else ()
        in_background = self._writer.is_background
        taken = snapshot.take(ctx)
        begun = self._saves.begin(self._stem(ctx), taken, frozen, is_copied=in_background)
        own = {"run": self._run, "lineage": self._lineage, "parent": self._parent}
        fields = {**own, "reason": reason, **snapshot.facts(ctx), **judged}
        if in_background:
            marks_now = ("last", *won)
            exported = any(is_exported(mark, self.weights_only_export) for mark in marks_now)
            begun = begun.copied(self._kept, with_model=exported)
        self._path = self.folder.path / f"{self.folder.prefix}{self._stem(ctx)}"
        then = partial(self._follow, begun, fields["reason"], won)
        self._writer.start(partial(self._saves.write, begun, fields, self._peers, then))
        self._saved_at = step
        self._next_time = time.monotonic() + (self.save_seconds or 0.0)
        if not self._writer.is_background:
            self._tell(ctx)
        return self._path

    @hookimpl
    def load_checkpoint(self, ctx: Context, path: Path) -> bool:
        """Restores the run from a checkpoint, which is verified first."""
        found, self._found = self._found, None
        entry = found if found and found.path == path else locate(path, self.folder)
        if entry is None:
            return False
        saved = saved_for(ctx, entry)
        reading = ClassSource(ctx, saved, self.drop_plugin_state, self.override)
        self._random = reading.give(ctx, strict=self.strict_match)
        self.bests.tell_replaced(compare.warner(ctx))
        position = ctx.position
        self._saved_at, self._path = position.global_step, entry.path
        self._saves.adopt(entry)
        log.info(
            "resumed from %r: epoch %d, step %d of it, %d steps in all",
            str(option_values.short(entry.path)),
            position.epoch,
            position.step,
            position.global_step,
        )
        if is_done(ctx):
            log.info("nothing is left to do; give the run more num_epochs or num_steps to go on")
        return True

    def preview_marks(self, ctx: Context) -> list[tuple[int, str]]:
        """``(global step, label)`` of every planned save, for ``hatbus preview``."""
        label = f"checkpoint {self.folder.prefix}".rstrip("-_ ")
        every, unit, end = self.save_interval, self.interval_by or "epoch", self.save_on_train_end
        return marks_every(label, every, unit, ctx, at_end=bool(end))

    def state_dict(self) -> dict[str, Any]:
        """The best value, and the task sampler's state."""
        get = getattr(self.task_sampler, "state_dict", None)
        return {**self.bests.state(), "task_sampler": get() if get else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on comparing."""
        self.bests.load(state)
        if state["task_sampler"] is not None and hasattr(self.task_sampler, "load_state_dict"):
            self.task_sampler.load_state_dict(state["task_sampler"])

    def _is_due(self, number: int) -> bool:
        return self.save_interval is not None and (number + 1) % self.save_interval == 0

    def _interval(self) -> str:
        """The interval in words."""
        many = f"{self.save_interval} {self.interval_by}s"
        return f"every {self.interval_by if self.save_interval == 1 else many}"

    def _save(self, ctx: Context, reason: str) -> None:
        """Saves at once; after what others asked for at this boundary, if they did."""
        if ctx.control.pending and ctx.world_size == 1:
            ctx.control.save(reason)
        else:
            ctx.save(reason)

    def _tell(self, ctx: Context) -> None:
        """Waits for the save that is under way, if any, and emits that it is durable."""
        path = self._writer.collect()
        if path is None:
            return
        if self._saved_at == ctx.position.global_step:
            self._path = path
        if ctx.emit.on_checkpoint_saved is not None:
            ctx.emit.on_checkpoint_saved(ctx, path)

    def _stem(self, ctx: Context) -> str:
        position = ctx.position
        if self.interval_by == "epoch" and position.step == 0 and position.epoch:
            return f"checkpoint-epoch-{position.epoch:04d}"
        return f"checkpoint-step-{position.global_step}"

    def _follow(self, begun: Begun, reason: str, won: Sequence[str], entry: Entry) -> Path:
        """What hangs on a checkpoint being durable; on the first process."""
        log.info("saved %s (%s)", entry.path.name, reason)
        self._parent = entry.path.name
        try:
            follow_up(self.folder, entry, begun.taken, won, exported=self.weights_only_export)
            if self.keep_last is not None or self.keep_best is not None or self.bests.are_kept:
                rankings = self.bests.rankings(self.folder, self.keep_best)
                retire(self.folder, self._run, self.keep_last, rankings)
        except OSError as error:
            log.warning("after saving %s: %s", entry.path.name, error)
        return entry.path

    # ---- lines of runs in one folder ----------------------------------------------------------

    def _take_over(self, found: Entry, wanted: str) -> None:
        """Goes on with the line of a checkpoint, unless newer ones would then be taken for its."""
        self._found, self._parent = found, found.path.name
        newest = next((e.path for e in self.folder.entries() if not e.fault), None)
        if wanted == AUTO or newest == found.path:
            self._run, self._lineage = found.manifest["run"], found.manifest["lineage"]

    def _begin_lineage(self, ctx: Context) -> None:
        """A run that does not go on with the newest checkpoint here begins a line of its own."""
        if self._lineage or ctx.rank != 0:
            return
        others = [e for e in self.folder.entries() if not e.fault]
        self._lineage = 1 + max((e.manifest["lineage"] for e in others), default=0)
        if others:
            log.warning(
                "%r holds %d checkpoints of earlier runs, which stay; resume = 'auto' goes on "
                "with the newest of them",
                str(self.folder.path),
                len(others),
            )
