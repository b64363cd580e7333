"""``SaveTraced``: the trained model in a file that runs without its source code."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from hatbus import hookimpl, option_values, plugin
from hatbus.errors import JobError
from hatbus.log import log
from hatbus.option_values import one_of
from hatbus.parallel import refuse_sharded
from hatbus_export.annotations import annotations_of
from hatbus_export.copying import eval_copy, on_cpu
from hatbus_export.formats import DEFAULT, TRIALS, WRITERS, called, write_durably

if TYPE_CHECKING:
    from hatbus.loop import Context


@plugin(stage="report", ranks="zero")
class SaveTraced:
    """Traces the model at the end of the run and writes ``{prefix}deploy-checkpoint-last.pt``.

    It works on a copy on the CPU in eval mode: the live model keeps its device, modes, gradients
    and wrapper. Nothing is written when the run failed. ``ctx.emit.export_model(ctx, reason)``
    writes at any other time. Source: ``hat.callbacks.SaveTraced``.

    Args:
        save_dir: folder of the file; in a job by default in the run's, under its name.
        trace_inputs: example inputs: a tuple is unpacked; a dict is passed as keywords where its
            keys are arguments of the model's forward, else whole, as its one argument.
        name_prefix: beginning of the file's name.
        allow_anno_miss: whether outputs may lack their attribute ``annotation``. The annotations
            that a forward found are written with the model as the extra file
            ``annotations.json``.
        save_hash: put the first 8 characters of the content's sha256 in the name.
        forward_before_trace: run the copy once before it is traced (always done when no
            annotation may miss).
        formats: what to write: ``"pt"`` (for ``torch.jit.load``), ``"pt2"`` (for
            ``torch.export.load``); by default ``["pt"]``, and ``["pt2"]`` from Python 3.14 on, as
            torch supports no tracing there.
        weights: the weight view to write: ``"raw"``, or ``"ema"`` when that plugin is on.

    Raises:
        JobError: a value that cannot be used; at loop begin, weights that the run does not have.
        SaveError: while writing: the model cannot be copied or the file not written.
    """

    def __init__(
        self,
        save_dir: str,
        trace_inputs: tuple[Any, ...] | dict[str, Any],
        name_prefix: str = "",
        allow_anno_miss: bool = True,
        save_hash: bool = True,
        forward_before_trace: bool = False,
        formats: list[str] | tuple[str, ...] | None = None,
        weights: str = "raw",
    ) -> None:
        if "/" in name_prefix:
            raise JobError(
                f"save_traced: name_prefix is {name_prefix!r}; accepted: a text without '/'"
            )
        self.trace_inputs = _read_inputs(trace_inputs)
        self.formats = DEFAULT if formats is None else _read_formats(formats)
        self.save_dir = option_values.path("save_traced: save_dir", save_dir)
        self.name_prefix = name_prefix
        self.allow_anno_miss, self.save_hash = allow_anno_miss, save_hash
        self.forward_before_trace = forward_before_trace
        self.weights = weights
        self.written: list[Path] = []

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Refuses what cannot be written at the end: better now than when the run is over."""
        refuse_sharded(
            ctx.model, "save_traced", "`hatbus export DIR` writes the weights of its checkpoint"
        )
        one_of("save_traced: weights", self.weights, ctx.weights.names)
        self._try(ctx.model)

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Writes the model, unless the run failed."""
        if ctx.exception is None:
            ctx.emit.export_model(ctx, "end of the run")

    def arguments_of(self, model: torch.nn.Module) -> tuple[Any, ...] | dict[str, Any]:
        """``trace_inputs`` as the model's forward takes them.

        A dict whose keys are no arguments of the forward is its one argument.

        Raises:
            JobError: they do not fit the forward.
        """
        return fitting(self.trace_inputs, model)

    def _try(self, model: torch.nn.Module) -> None:
        """Does everything once with a copy, but for the writing.

        Raises:
            JobError: the model fails on ``trace_inputs``, or cannot be had in a format.
        """
        inputs = on_cpu(self.arguments_of(model))
        if any(is_lazy(one) for one in (*model.parameters(), *model.buffers())):
            return  # its shapes come with the first batch
        copied, doing = eval_copy(model), "fails on"
        with _random_state_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are said when it is written
            try:
                outputs = called(copied, inputs)
                for suffix in self.formats:
                    doing = f"cannot be written as {suffix!r} with"
                    TRIALS[suffix](copied, inputs)
            except Exception as error:
                what = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
                raise JobError(
                    f"save_traced: {type(model).__name__} {doing} trace_inputs {_shown(inputs)}: "
                    f"{what}; change trace_inputs, formats or the model (--traceback shows where)"
                ) from error
            if not self.allow_anno_miss:
                annotations_of(outputs, allow_miss=False)

    @hookimpl
    def export_model(self, ctx: Context, reason: str) -> Path:
        """Writes the model in every format; returns the path of the first."""
        with ctx.weights.showing(self.weights):
            model = eval_copy(ctx.model)
        inputs = on_cpu(self.arguments_of(ctx.model))
        stem = f"{self.name_prefix}deploy-checkpoint-last"
        with _random_state_kept():
            outputs = None
            if self.forward_before_trace or not self.allow_anno_miss:
                outputs = called(model, inputs)
            annotations = annotations_of(outputs, allow_miss=self.allow_anno_miss)
            found = [
                write_durably(
                    partial(WRITERS[suffix], model, inputs, annotations),
                    self.save_dir,
                    stem,
                    suffix,
                    with_hash=self.save_hash,
                )
                for suffix in self.formats
            ]
        for old in set(self.written) - set(found):  # an earlier export of this run: no longer last
            old.unlink(missing_ok=True)
        self.written = found
        log.info("save_traced: wrote %s (%s)", ", ".join(map(str, found)), reason)
        return found[0]


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Training draws the same random numbers afterwards."""
    with torch.random.fork_rng(devices=[]):
        yield


def _read_inputs(inputs: Any) -> tuple[Any, ...] | dict[str, Any]:
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs)
    raise JobError(
        f"save_traced: trace_inputs is a {type(inputs).__name__}; accepted: a tuple of arguments, "
        "such as (images,), or a dict of keywords"
    )


def fitting(inputs: Any, model: torch.nn.Module) -> tuple[Any, ...] | dict[str, Any]:
    """Inputs as a forward takes them; see ``SaveTraced.arguments_of``."""
    try:
        signature = inspect.signature(model.forward)
    except ValueError:  # TorchScript, which tells at the trial
        return tuple(inputs) if not isinstance(inputs, dict) else inputs
    forms: list[Any] = [inputs, (inputs,)] if isinstance(inputs, dict) else [inputs]
    for form in forms:
        try:
            signature.bind(**form) if isinstance(form, dict) else signature.bind(*form)
        except TypeError:
            continue
        found: tuple[Any, ...] | dict[str, Any] = form
        return found
    given = (
        f"a dict of {', '.join(map(repr, inputs))}"
        if isinstance(inputs, dict)
        else f"a tuple of {len(inputs)}"
    )
    raise JobError(
        f"save_traced: trace_inputs is {given}, which {type(model).__name__}.forward{signature} "
        "does not take; accepted: a tuple of its arguments, a dict of them by name, or the dict "
        "that is its one argument"
    )


def _shown(inputs: Any) -> str:
    """Inputs in short: shapes in place of tensors."""
    if isinstance(inputs, torch.Tensor):
        return f"{str(inputs.dtype).removeprefix('torch.')}{[*inputs.shape]}"
    if isinstance(inputs, dict):
        return "{" + ", ".join(f"{name!r}: {_shown(v)}" for name, v in inputs.items()) + "}"
    if isinstance(inputs, (tuple, list)):
        return f"({', '.join(map(_shown, inputs))})"
    return f"{inputs!r:.40}"


def _read_formats(formats: Any) -> tuple[str, ...]:
    if not isinstance(formats, (list, tuple)) or not formats:
        raise JobError(f"save_traced: formats is {formats!r}; accepted: a list of 'pt', 'pt2'")
    for name in formats:
        one_of("save_traced: formats", name, [*WRITERS])
    return tuple(formats)
