"""``TensorBoard``: writes what a run publishes for TensorBoard.

Source: ``hat.callbacks.TensorBoard``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from hatbus import hookimpl, option_values, plugin
from hatbus.errors import PluginError, did_you_mean
from hatbus.evaluation import mean_losses
from hatbus.loop import claim_file, is_cut_short
from hatbus_tensorboard import scalars
from hatbus_tensorboard.describe import hyperparameters, last_metrics, texts
from hatbus_tensorboard.event_file import EventFile
from hatbus_tensorboard.folder import clear
from hatbus_tensorboard.one_record import OneRecord
from hatbus_tensorboard.update_funcs import update_functions

if TYPE_CHECKING:
    from hatbus import Context
    from hatbus_tensorboard.summary_writer import RunWriter

WRITER_OPTIONS: Final = ("comment", "purge_step", "max_queue", "flush_secs", "filename_suffix")
"""What ``torch.utils.tensorboard.SummaryWriter`` takes, ``log_dir`` apart."""


@plugin(stage="report", after=("stats_monitor", "progress"), ranks="zero")
class TensorBoard:
    """Writes the losses of every batch, and everything that is published with ``ctx.log``.

    The step of every curve is ``global_step_id``. A run with tasks writes ``<task>/<loss>``; of
    several micro-batches in a step the mean is written, and of several processes that over all;
    what ``model_outs`` holds, and the losses inside a validation, are the first one's. Published
    values are written whenever they are published: scalars, images (CHW or HW, 0..1), histograms
    (any tensor) and texts.

    Tensors are never read in the training's own thread: a writer thread does that, many steps at
    a time. Everything is in the file before a checkpoint is written. A resumed run takes back
    the steps that are run again, so no step appears twice. Two instances write in two folders.

    Among the callbacks of a validation a curve has one point per validation, at the training's
    step: the mean of a loss over the batches, and the last value that was published, under the name
    that it has in the training (``val/loss``). All validations of a run are in one file.

    Args:
        save_dir: folder of the event files; in a job by default in the run's, under its name.
        overwrite: delete event files of earlier runs in this folder (nothing else, and not when
            the run is resumed). Otherwise TensorBoard shows the newest run in place of them.
        loss_name_reg: which names are losses; matched from the start, ignoring case, against the
            flattened names in ``model_outs`` ("_" between levels) and the names of the losses.
        update_freq: write losses, and call ``tb_update_funcs``, every so many steps or epochs; a
            task that is not in that step, at its next batch.
        update_by: ``"step"`` or ``"epoch"``; by epoch, those of the epoch's last step.
        tb_update_funcs: functions of ``writer`` (a ``SummaryWriter``) and any argument of
            ``on_batch_end`` (``model_outs``, ``global_step_id``, ``train_metrics``, ...); with
            other names ``(writer, model_outs, step_id)``, by place.
        describe: write the job and the order of the plugins as text, and the hyperparameters (the
            optimizer's options and the job's) with the last metrics.
        tb_writer_kwargs: options of torch's ``SummaryWriter``: ``flush_secs``, ``max_queue``,
            ``filename_suffix``, ``purge_step``.

    Raises:
        JobError: a value that is not accepted.
        PluginError: an option that does not exist, or a function that cannot be called.
    """

    def __init__(
        self,
        save_dir: str,
        overwrite: bool = False,
        loss_name_reg: str = "^.*loss.*",
        update_freq: int = 1,
        update_by: Literal["step", "epoch"] = "step",
        tb_update_funcs: Sequence[Callable[..., Any]] | None = None,
        *,
        describe: bool = True,
        **tb_writer_kwargs: Any,
    ) -> None:
        option_values.whole("tensorboard: update_freq", update_freq, 1)
        option_values.one_of("tensorboard: update_by", update_by, option_values.UNITS)
        _check_writer_options(tb_writer_kwargs)
        self.save_dir = option_values.path("tensorboard: save_dir", save_dir)
        self.overwrite = overwrite
        self.update_freq, self.update_by = update_freq, update_by
        self.describe = describe
        self.writer: RunWriter | None = None
        self._functions = update_functions(tb_update_funcs)
        self._pattern = scalars.compiled(loss_name_reg)
        self._options = tb_writer_kwargs
        self._by_step = update_by == "step"
        self._record: OneRecord | None = None
        self._is_inside = False
        self._file: Path | None = None
        self._is_over = False
        self._early: list[tuple[dict[str, Any], str, int]] = []
        self._losses: dict[str, list[Any]] = {}
        self._losses_of = -1
        self._tags: dict[str, str] = {}
        self._first: int | None = None
        self._served: dict[str, int] = {}
        self._serving: dict[str, int] = {}

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Opens the file; the counters are those of a resumed run already."""
        run = ctx.training
        self._is_inside = run is not ctx
        inside = min(run.began_at, run.global_step_id)
        first = inside if self._is_inside else ctx.position.global_step
        self._is_over, self._losses, self._losses_of = False, {}, -1
        if first == 0 or self._first is None:
            self._first, self._served = first, {}
        is_known = claim_file(ctx, self.save_dir, self)
        self._open(first, self._file if is_known and self._is_inside else None)
        if self.describe and self.writer is not None and not self._is_inside:
            for name, text in texts(ctx).items():
                self.writer.add_text(name, text, first)
        early, self._early = self._early, []
        for values, kind, step in early:
            self._write(values, kind, max(step, first))

    def _open(self, first: int, known: Path | None) -> None:
        """Opens the file, at this step of the run; or one of this run again."""
        from hatbus_tensorboard.summary_writer import RunWriter

        if self.overwrite and first == 0 and known is None:
            clear(self.save_dir)
        purge = self._options.get("purge_step")
        file = EventFile(
            self.save_dir,
            seconds=self._options.get("flush_secs", 1.0),
            most=self._options.get("max_queue", 2048),
            suffix=self._options.get("filename_suffix", ""),
            path=known,
        )
        self._file = file.path
        self.writer = RunWriter(file, first if purge is None else purge)
        self._record = OneRecord(file)

    @hookimpl
    def on_batch_end(
        self,
        model_outs: Any = None,
        global_step_id: int | None = None,
        losses: Mapping[str, Any] | None = None,
        ctx: Context | None = None,
        **_more: Any,
    ) -> None:
        """Takes the batch's losses, and calls the functions, when that is due.

        Outside a run, without ``ctx``: writes the losses in ``model_outs`` if the file is open.
        """
        losses = losses or {}
        if ctx is None:
            found = scalars.losses_of(model_outs, losses, self._pattern)
            if self._record is not None and global_step_id is not None:
                self._record.add(found, global_step_id)
            return
        if ctx.exception is not None:
            return
        if self._is_inside:  # the losses of every batch: one point is their mean
            self._take_losses(ctx, model_outs, losses)
            is_called = self._by_step and (ctx.global_step_id + 1) % self.update_freq == 0
        elif self._is_due(ctx):
            if self._losses_of != ctx.global_step_id:  # by epoch, those of the step before are left
                self._losses, self._losses_of = {}, ctx.global_step_id
            self._take_losses(ctx, model_outs, losses)
            is_called = self._by_step
        else:
            return
        if is_called:
            self._call_functions(ctx)

    def _take_losses(self, ctx: Context, model_outs: Any, losses: Mapping[str, Any]) -> None:
        task = f"{ctx.task}/" if ctx.task else ""
        for name, value in scalars.losses_of(model_outs, losses, self._pattern).items():
            bare = value.detach() if isinstance(value, torch.Tensor) else value
            self._losses.setdefault(f"{task}{name}", []).append(bare)
        if ctx.world_size > 1:
            tags = scalars.tags_of(losses, self._pattern)
            self._tags |= {f"{task}{tag}": f"{task}{name}" for tag, name in tags.items()}

    def wants_mean_losses(self, ctx: Context) -> bool:
        """In which steps losses may be written: of several processes, as the mean over all."""
        done, n = ctx.position.global_step, self.update_freq
        if self._by_step:
            return len(getattr(ctx.data, "tasks", ())) > 1 or done % n == 0
        ends = ctx.position.step in (ctx.steps_per_epoch, 0) or done == ctx.num_steps
        return (ctx.epoch_id + 1) % n == 0 and (ends or ctx.steps_per_epoch is None)

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        """Writes the step's losses."""
        if self._is_inside:
            return
        if self._serving:
            self._served.update(self._serving)
            self._serving = {}
            self._write_losses(ctx)
        if self._record is not None:
            self._record.put()

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        """Writes the losses of the epoch's last step, and calls the functions, if due by epoch."""
        if self._is_inside and ctx.exception is None:
            self._write_losses(ctx)
        if self._by_step or (ctx.epoch_id + 1) % self.update_freq or ctx.exception is not None:
            return
        if is_cut_short(ctx):
            return
        self._write_losses(ctx)
        if (
            self._is_inside or self._losses_of >= 0
        ):  # else a resumed run has no outputs of the epoch that it ends
            self._call_functions(ctx)

    @hookimpl
    def on_log(self, ctx: Context, logs: Mapping[str, Any], kind: str) -> None:
        """Writes what was published."""
        if self._record is None:
            self._keep_until_open(ctx, logs, kind)
        elif self._is_inside:
            named = {ctx.name_in_run(name): value for name, value in logs.items()}
            self._write(named, kind, ctx.training.global_step_id)
        elif kind == "scalar":
            self._record.add(logs, ctx.global_step_id)
        else:
            self._write(logs, kind, ctx.global_step_id)

    def _keep_until_open(self, ctx: Context, logs: Mapping[str, Any], kind: str) -> None:
        if not self._is_over:
            kept = {name: scalars.kept(value) for name, value in logs.items()}
            self._early.append((kept, kind, ctx.global_step_id))

    @hookimpl(wrapper=True)
    def save_checkpoint(self, ctx: Context) -> Generator[None, Any, Any]:
        """Everything up to a checkpoint is in the file before the checkpoint is."""
        if self._record is not None:
            is_epoch_over = ctx.position.step in (0, ctx.steps_per_epoch)
            if self._by_step or is_epoch_over:
                self._write_losses(ctx)
            self._record.flush()
        return (yield)

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Writes the rest and closes the file, whatever ended the run."""
        writer, record = self.writer, self._record
        self.writer = self._record = None
        self._is_over = True
        if writer is None or record is None:
            return
        try:
            if self.describe and ctx.exception is None and not self._is_inside:
                _write_hyperparameters(writer, ctx)
        finally:
            record.close()

    def state_dict(self) -> dict[str, Any]:
        """How many steps there were when each task was last written, and when all began."""
        return {"first": self._first, "served": {**self._served, **self._serving}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes them back."""
        self._first, self._served = state["first"], dict(state["served"])

    def _is_due(self, ctx: Context) -> bool:
        """Whether this batch is written: every n-th step, or a task's first batch from there on.

        With one task a step, a task may never stand in an n-th step itself.
        """
        n = self.update_freq
        if not self._by_step:
            return (ctx.epoch_id + 1) % n == 0
        task, done = ctx.task or "", ctx.global_step_id + 1
        if done // n <= self._served.get(task, self._first or 0) // n:
            return False
        self._serving[task] = done
        return True

    def _write_losses(self, ctx: Context) -> None:
        losses, self._losses = self._losses, {}
        if losses and self._record is not None:
            means = {
                ctx.name_in_run(n): v[0] if len(v) == 1 else sum(v) / len(v)
                for n, v in losses.items()
            }
            if self._tags and not self._is_inside:
                mean = mean_losses(ctx)
                means |= {tag: mean[n] for tag, n in self._tags.items() if n in mean}
            self._record.add(means, ctx.training.global_step_id)

    def _write(self, values: Mapping[str, Any], kind: str, step: int) -> None:
        """Writes published values."""
        if self._record is None or self.writer is None:
            return
        if kind == "scalar":
            self._record.add(values, step)
            return
        for name, value in values.items():
            if kind == "image":
                layout = "CHW" if getattr(value, "ndim", 3) == 3 else "HW"
                self.writer.add_image(name, value, step, dataformats=layout)
            elif kind == "histogram":
                self.writer.add_histogram(name, value, step)
            elif kind == "text":
                self.writer.add_text(name, str(value), step)

    def _call_functions(self, ctx: Context) -> None:
        for function in self._functions:
            function(self.writer, ctx)


def _check_writer_options(options: Mapping[str, Any]) -> None:
    """Refuses what ``SummaryWriter`` does not take.

    Raises:
        JobError: a value that is not accepted.
        PluginError: an option that does not exist.
    """
    for name, value in options.items():
        where = f"tensorboard: {name}"
        if name not in WRITER_OPTIONS:
            hint = did_you_mean(name, (*WRITER_OPTIONS, "describe"))
            raise PluginError(f"tensorboard: unknown option {name!r}{hint}")
        if name == "flush_secs":
            option_values.number(where, value, above=True)
        elif name == "max_queue":
            option_values.whole(where, value, 1)
        elif name == "purge_step" and value is not None:
            option_values.whole(where, value, 0)
        elif name == "filename_suffix" and value:
            option_values.text(where, value)


def _write_hyperparameters(writer: RunWriter, ctx: Context) -> None:
    """Writes hyperparameters and last metrics as one session of the HPARAMS tab."""
    from torch.utils.tensorboard.summary import hparams

    with torch.no_grad():
        _, begin, end = hparams(hyperparameters(ctx), last_metrics(ctx))  # type: ignore[no-untyped-call]
    # Without the first one, the experiment: of several runs TensorBoard shows the columns of one.
    for summary in (begin, end):
        writer.file_writer.add_summary(summary, ctx.global_step_id)
