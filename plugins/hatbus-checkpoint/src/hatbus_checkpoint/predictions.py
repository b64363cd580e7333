"""``Predictions``: the model's outputs for every sample, in files, batch by batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import distributed

from hatbus import hookimpl, plugin
from hatbus.data import length_of, samples_in, to_device
from hatbus.errors import DataError, JobError, SaveError, did_you_mean
from hatbus.log import log
from hatbus.option_values import one_of, short, whole
from hatbus.option_values import path as path_value
from hatbus.runs import FileLock
from hatbus_checkpoint import output_rows, tensor_file
from hatbus_checkpoint.agree import first_of_all
from hatbus_checkpoint.in_turn import AsTheyCome, EachOnce, InOrder, keeps_order
from hatbus_checkpoint.output_files import (
    LOCK,
    LineFile,
    Output,
    Progress,
    Shards,
    places_in,
    progress_in,
    remove_files,
)

if TYPE_CHECKING:
    from hatbus.loop import Context

FORMATS = ("jsonl", "safetensors")
_OURS = (output_rows.INDEX, output_rows.OUTPUT)


@plugin(stage="report")
class Predictions:
    """Writes the model's outputs for every sample into files, in ``trainer.predict``.

    In a training it does nothing. ``hatbus predict`` adds it to the job of a run.

    A prediction that was killed, or that a full disk ended, goes on behind the batches that are
    written, and ends with the files that an undisturbed one has. Over several processes each sample
    is written once, in the order of the data set.

    Args:
        save_dir: folder of the files.
        format: ``"jsonl"``: a line ``{"index": ..., "output": ...}`` for each sample;
            ``"safetensors"``: files with the tensors ``index`` (n,) and ``output`` (n, ...), or
            ``output.<name>`` for each of several.
        keep: entries of the batch that are written too, to know the samples by: keys of a batch
            that is a mapping, numbers in one that is a tuple (1 is the target).
        data_loader: what ``hatbus predict`` goes over; by default that of the first validation.
        shard_size: samples in a file of tensors; the batch that fills it is not torn.
        anew: remove what an earlier prediction has written in the folder, and begin again.

    Attributes:
        written: samples that are in the files.
        wrote: the files, once they are whole.
    """

    def __init__(
        self,
        save_dir: str | Path = "predictions",
        format: Literal["jsonl", "safetensors"] = "jsonl",  # noqa: A002 - the option's name
        keep: Sequence[str | int] = (),
        data_loader: Any = None,
        shard_size: int = 1024,
        *,
        anew: bool = False,
    ) -> None:
        one_of("predictions: format", format, FORMATS)
        whole("predictions: shard_size", shard_size, 1)
        if isinstance(keep, (str, int)):
            keep = [keep]
        ours = [name for name in keep if name in _OURS]
        if ours:
            raise JobError(f"predictions: keep has {ours[0]!r}, which is the name of another part")
        self.save_dir, self.format = path_value("predictions: save_dir", save_dir), format
        self.keep, self.data_loader = [*keep], data_loader
        self.shard_size, self.anew = shard_size, anew
        self.written = 0
        self.wrote: list[Path] = []
        self._output: Output | None = None
        self._lock: FileLock | None = None
        self._lost, self._batches = "", 0
        self._settled: int | None = 0
        self._rows = AsTheyCome(0)

    @hookimpl
    def on_prediction_begin(self, ctx: Context) -> None:
        """Opens the files, behind what is written.

        Raises:
            JobError: another prediction is in the folder, or is being written there.
            SaveError: the folder cannot be written.
        """
        self._lost = ""
        begun: Progress = first_of_all(ctx, lambda: self._opened(ctx))
        ctx.step_id = self._batches = self._settled = begun.batches
        self.written, self.wrote = begun.samples, [self.save_dir / name for name in begun.files]
        self._rows = AsTheyCome(begun.samples)
        if ctx.world_size > 1 and ctx.rank == 0:
            in_order = keeps_order(ctx.data_loader)
            known = () if in_order else places_in(self.save_dir, begun)
            self._rows = (InOrder if in_order else EachOnce)(begun.samples, known)
        if begun.samples and ctx.rank == 0:
            rest = "that is all" if begun.complete else "the prediction goes on behind them"
            log.info("%d samples are in %s: %s", begun.samples, short(self.save_dir), rest)

    @hookimpl
    def write_outputs(self, ctx: Context, samples: list[int] | None, model_outs: Any) -> bool:
        """Writes a row for each sample of the batch.

        Raises:
            DataError: the outputs have no rows, or rows that the format cannot hold.
            SaveError: they could not be written.
        """
        self._take(ctx, self._rows_of(ctx, samples, model_outs))
        return True

    @hookimpl
    def on_prediction_end(self, ctx: Context) -> None:
        """Ends the files; what was left before its end goes on another time."""
        is_whole = ctx.exception is None
        while is_whole and ctx.world_size > 1 and self._take(ctx, None):
            pass  # another rank has a batch more
        output, self._output = self._output, None
        try:
            if output is not None and is_whole:
                self._add(output, self._rows.rest(), None)
                with writing(self.save_dir):
                    output.finish(self._batches)
                self.wrote = [self.save_dir / name for name in output.progress.files]
                warn_of_the_rest(ctx.data_loader, self.written)
            elif output is not None:
                output.leave(self._settled)
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def _opened(self, ctx: Context) -> Progress:
        """How far the prediction in the folder is; its files are open if something is left."""
        folder = self.save_dir
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = FileLock(folder / LOCK)
            except BlockingIOError as error:
                raise JobError(
                    f"another prediction writes into {str(short(folder))!r}: {error}; wait for it, "
                    "or choose another folder (--out, save_dir)"
                ) from error
            if self.anew:
                remove_files(folder)
            try:
                about = self._about(ctx)
                progress = progress_in(folder) or Progress(about)
                self._compare(progress, about)
                if not progress.complete:
                    self._output = (
                        LineFile(folder, progress)
                        if self.format == "jsonl"
                        else Shards(folder, progress, self.shard_size)
                    )
                    progress.write(folder)
            except ValueError as error:
                raise JobError(
                    f"the prediction in {str(short(folder))!r} is damaged: {error}; begin it again "
                    "(--anew, anew=True), or choose another folder (--out, save_dir)"
                ) from error
        return progress

    def _about(self, ctx: Context) -> dict[str, Any]:
        """What is predicted: with which weights, over what, and how it is written."""
        loader: Any = ctx.data_loader
        job = ctx.storage.get("job", {})
        about = {
            "checkpoint": ctx.storage.get("shown_checkpoint"),
            "view": ctx.weights.current,
            "weights": of_model(ctx.model),
            "task": ctx.task,
            "processes": ctx.world_size,
            "batches": length_of(loader),
            "batch_size": getattr(getattr(loader, "order", loader), "batch_size", None),
            "samples": samples_of(loader),
            "data_loader": ctx.storage.get("predicted_loader"),
            "args": job.get("run", {}).get("args"),
            "format": self.format,
            "keep": self.keep,
            "shard_size": self.shard_size if self.format != "jsonl" else None,
        }
        found: dict[str, Any] = json.loads(json.dumps(about, default=str))
        return found

    def _compare(self, progress: Progress, about: Mapping[str, Any]) -> None:
        """Refuses to mix two predictions.

        Raises:
            JobError: the one in the folder is of something else.
        """
        names = [n for n in about if about[n] != progress.of.get(n)]
        if names:
            said = ", ".join(f"{n}: {progress.of.get(n)} there, {about[n]} now" for n in names[:3])
            raise JobError(
                f"another prediction is in {str(short(self.save_dir))!r} ({said}); choose another "
                "folder (--out, save_dir), or remove that one (--anew, anew=True)"
            )

    def _rows_of(self, ctx: Context, samples: list[int] | None, outs: Any) -> list[tuple[int, Any]]:
        """A row for each sample, with its place."""
        batch, outs = (to_device(part, torch.device("cpu")) for part in (ctx.batch, outs))
        if ctx.device.type != "cpu":
            torch.accelerator.synchronize()  # the copies are under way
        count = len(samples) if samples is not None else samples_in(batch)
        if count is None:
            raise DataError("predictions: nobody knows how many samples a batch has")
        if samples is None:
            samples = self._counted(ctx, count)
        rows, lost = output_rows.rows_of(outs, count)
        if rows is None:
            raise DataError(
                f"predictions: nothing in the model's outputs ({type(outs).__name__}) has a row "
                f"for each of the batch's {count} samples; {output_rows.WAY}"
            )
        if lost and not self._lost and ctx.rank == 0:
            self._lost = ", ".join(lost)
            log.warning("predictions: %s is left out: it has no row for each sample", self._lost)
        kept = {str(name): entry_of(batch, name, count) for name in self.keep}
        return [
            (place, self._row(place, {name: column[i] for name, column in kept.items()}, rows[i]))
            for i, place in enumerate(samples)
        ]

    def _counted(self, ctx: Context, count: int) -> list[int]:
        """Places of the samples of a loader that does not say them: in the order that they came."""
        if ctx.world_size > 1:
            raise DataError(
                "predictions on several processes: this loader does not say which samples a batch "
                "has, so nobody knows whether each comes once; take hatbus.data.loader, or one of "
                "torch's over a data set with __getitem__"
            )
        return [*range(self.written, self.written + count)]

    def _row(self, place: int, kept: Mapping[str, Any], row: Any) -> Any:
        """What is written of a sample: a line, or tensors."""
        if self.format == "jsonl":
            values = {name: output_rows.as_json(value, name) for name, value in kept.items()}
            whole_row = {"index": place, **values, "output": output_rows.as_json(row)}
            return (json.dumps(whole_row, ensure_ascii=False, allow_nan=False) + "\n").encode()
        tensors: dict[str, torch.Tensor] = {}
        for name, value in kept.items():
            tensors |= output_rows.as_tensors(value, name)
        return tensors | output_rows.as_tensors(row)

    def _take(self, ctx: Context, rows: list[tuple[int, Any]] | None) -> bool:
        """Writes the rows of a batch, those of all ranks; None: this rank has no more.

        Returns:
            Whether any rank had some.
        """
        if ctx.world_size > 1:
            if not ctx.control.anywhere([rows is not None])[0]:
                return False
            own = [(place, own_copy(row)) for place, row in rows or ()]
            found: list[Any] | None = [None] * ctx.world_size if ctx.rank == 0 else None
            distributed.gather_object(own, found)
            rows = [row for part in found or () for row in part]
        new = self._rows.next_of(rows or [])
        if self._output is not None:
            self._add(self._output, new, self._settled)
        self._batches += 1
        self._settled = None if self._rows.held else self._batches
        if self._output is not None and self._settled is not None:
            with writing(self.save_dir):
                self._output.settle(self._settled)
        return True

    def _add(self, output: Output, rows: list[tuple[int, Any]], before: int | None) -> None:
        with writing(self.save_dir):
            output.add(rows, before)
        self.written += len(rows)


def of_model(model: torch.nn.Module) -> str:
    """What tells the weights that are shown from others: a hash of all of them."""
    whole_hash = hashlib.sha256()
    for name, value in model.state_dict().items():
        whole_hash.update(name.encode())
        if isinstance(value, torch.Tensor):
            local = value.to_local() if hasattr(value, "to_local") else value
            with suppress(RuntimeError):  # a kind of tensor without plain memory
                whole_hash.update(tensor_file.as_bytes(local))
    return whole_hash.hexdigest()


def entry_of(batch: Any, name: str | int, count: int) -> list[Any]:
    """An entry of a batch, sample by sample.

    Raises:
        DataError: there is none of that name, or it has no row for each sample.
    """
    try:
        part = batch[name]
    except (LookupError, TypeError):
        names = [str(n) for n in batch] if isinstance(batch, Mapping) else []
        numbers = f"; accepted: 0 to {len(batch) - 1}" if isinstance(batch, (tuple, list)) else ""
        hint = did_you_mean(str(name), names) if names else numbers
        raise DataError(f"predictions: keep: the batch has no {name!r}{hint}") from None
    rows, _ = output_rows.rows_of(part, count, str(name))
    if rows is None:
        raise DataError(f"predictions: keep: {name!r} of the batch has no row for each sample")
    return rows


def own_copy(row: Any) -> Any:
    """A row to be sent: a tensor that is a part of another would be sent with all of it."""
    return {n: t.clone() for n, t in row.items()} if isinstance(row, dict) else row


def samples_of(loader: Any) -> int | None:
    """Samples in a loader's data set; None where it does not say."""
    with suppress(TypeError, AttributeError, NotImplementedError):
        return len(loader.dataset)
    return None


def warn_of_the_rest(loader: Any, written: int) -> None:
    """Says when a loader left samples out."""
    total = samples_of(loader)
    if total is not None and written < total:
        log.warning(
            "predictions: %d of the data set's %d samples are there; the loader leaves the others "
            "out (drop_last, or a sampler)",
            written,
            total,
        )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Says what to do when the files cannot be written.

    Raises:
        SaveError: they cannot.
    """
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SaveError(
            f"cannot write the outputs into {str(short(folder))!r}: {reason}; what was written "
            "before is good: make room, and the same command goes on behind it"
        ) from error
