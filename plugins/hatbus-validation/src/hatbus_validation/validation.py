"""``Validation``: evaluates the model during training.

Source: ``hat.callbacks.Validation``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from hatbus import hookimpl, plugin
from hatbus.errors import PluginError
from hatbus.evaluation import expected_losses, published_names
from hatbus.events import EVENTS
from hatbus.insight import marks_every
from hatbus.log import log
from hatbus.loop import Request, eval_mode, serve_requests, stop_wanted
from hatbus.option_values import UNITS, one_of, text, whole
from hatbus.parallel import is_sharded, refuse_sharded
from hatbus.rng import fenced
from hatbus_validation import shown_weights as shown
from hatbus_validation.callback_tables import Named, per_loader, without_writers
from hatbus_validation.evaluation_loop import EvaluationLoop
from hatbus_validation.fellows import FIRST_NAME, asking, fellows_of, first_names
from hatbus_validation.inference import check_inference, inference, plain_tensors
from hatbus_validation.inner_run import InnerContext, evaluate, give_states, inner_bus, states_of
from hatbus_validation.loaders import Passes, Source, built_loaders, sources
from hatbus_validation.processor import evaluation_processor, modules_of
from hatbus_validation.profile_steps import ProfileSteps
from hatbus_validation.published import Said, outer_name

if TYPE_CHECKING:
    from hatbus import Bus, Context


@plugin(stage="validate", shares="validate")
class Validation:
    """Runs the model over validation data at an interval, and publishes what its callbacks found.

    Inside, the same loop runs on a bus of its own: ``callbacks`` are its plugins and hear the same
    events as in training, from ``on_loop_begin`` to ``on_loop_end``. What they publish with
    ``ctx.log`` appears on the training's bus when the validation is over, as ``val/<name>``, or
    ``val/<loader>/<name>`` when there are several loaders.

    The training does not notice: weights, gradients, the mode of every module and the random state
    are afterwards as before, also when the validation fails or is interrupted.

    Args:
        data_loader: a loader; several, as a list or a mapping from names; or ``{task: loader}``.
            Each is passed over once per validation.
        batch_processor: a ``BatchProcessor(..., need_grad_update=False)``, or a mapping of its
            options; the trainer's own, without gradients, when None.
        callbacks: plugins; in a job tables such as ``{ use = "metric_updater", ... }``. An empty
            list switches the validation off; None publishes the mean of every loss. With
            ``share_callbacks=False`` a list of callbacks per loader.
        val_interval: validate every so many epochs or steps; None: at the end of the run only.
        interval_by: ``"epoch"`` or ``"step"``.
        val_model: a model to validate in place of the trained one, or a function that makes it.
        model_convert_pipeline: callables or configs of some, applied in order to a copy of the
            model; of a sharded one (FSDP2) only with ``val_model``. A ``val_model`` is converted
            until it has the trained model's names, and gets the trained weights there.
        init_with_train_model: copy the trained weights into ``val_model`` before each validation.
        strict_match: refuse a ``val_model`` whose weights differ in name or shape from the trained
            model's; otherwise they are named in a warning and left alone.
        val_on_train_end: validate at the end of the run, unless that very step was validated.
        profiler: profiles steps of the first validation: ``trace_dir``, ``wait``, ``warmup``,
            ``active``, ``repeat``, ``skip_first``, ``activities``, and what else
            ``torch.profiler.profile`` takes.
        share_callbacks: use the same callbacks with every loader.
        log_interval: steps between two lines in the log; None: none.
        weights: the weight view to validate: ``"raw"``, ``"ema"`` or what another plugin offers;
            None: EMA if there is one, else raw.
        name: first part of the published names; None: ``val``, and for a second validation of the
            run ``val/<its instance name>``.
        inference_mode: run it in ``torch.inference_mode``, a little faster than without gradients.
            For callbacks that keep no tensor for the training, and a loader that keeps none; what
            the modules keep (a cache) is made plain again. Not for a sharded model.

    A run may hold several validations, each at its own interval. Those that are due at one step are
    one ``validate``; when somebody else asks for a validation, all of them run.

    Attributes:
        validated_at: steps that were behind the run at the last validation.
        is_owed: whether a signal cut the last one short; it is made up for at resume.
        is_asked: whether the present ``validate`` is for this one in particular.

    Raises:
        JobError: a value that is not accepted.
        PluginError: something among the callbacks that is no plugin.
    """

    def __init__(
        self,
        data_loader: Iterable[Any] | Mapping[str, Iterable[Any]],
        batch_processor: Mapping[str, Any] | Any = None,
        callbacks: Sequence[Any] | None = None,
        val_interval: int | None = 1,
        interval_by: Literal["epoch", "step"] | None = "epoch",
        val_model: nn.Module | Mapping[str, Any] | Callable[..., nn.Module] | None = None,
        model_convert_pipeline: Sequence[Callable[[nn.Module], Any]]
        | Mapping[str, Any]
        | Callable[[nn.Module], Any]
        | None = None,
        init_with_train_model: bool | None = True,
        strict_match: bool | None = False,
        val_on_train_end: bool | None = True,
        profiler: Mapping[str, Any] | None = None,
        share_callbacks: bool = True,
        log_interval: int | None = 10,
        *,
        weights: str | None = None,
        name: str | None = None,
        inference_mode: bool = False,
    ) -> None:
        interval_by = interval_by or "epoch"
        one_of("validation: interval_by", interval_by, UNITS)
        for option, value in (("val_interval", val_interval), ("log_interval", log_interval)):
            if value is not None:
                whole(f"validation: {option}", value, 1)
        for option, given in (("weights", weights), ("name", name)):
            if given is not None:
                text(f"validation: {option}", given)
        self.data_loader: Any = built_loaders(data_loader)
        self.batch_processor = batch_processor
        self.val_interval, self.interval_by = val_interval, interval_by
        self.val_on_train_end = val_on_train_end
        self.val_model = shown.built_model(val_model)
        self.init_with_train_model = init_with_train_model
        self.strict_match = bool(strict_match)
        self.log_interval = log_interval
        self.weights, self.name = weights, name
        self.callbacks = per_loader(callbacks, share=share_callbacks)
        self.share_callbacks = share_callbacks or callbacks is None
        self._pipeline = shown.converters(model_convert_pipeline)
        self._profile = ProfileSteps(profiler) if profiler is not None else None
        self._runs: list[tuple[Source, Passes, Bus]] = []
        self._told = ""
        self._placed: tuple[nn.Module, tuple[shown.Converter, ...]] | None = None
        self._beside: list[nn.Module] = []
        self.validated_at = 0
        self.is_owed = False
        self._fellows: dict[str, Validation] = {}
        self._first_name = name or FIRST_NAME
        self.is_asked, self.inference_mode = False, inference_mode

    @property
    def is_off(self) -> bool:
        """Whether there is nothing to do: ``callbacks=[]``."""
        return not any(self.callbacks)

    requests = ("stop run",)
    """What it asks of any loop; a save only where the Trainer lets a signal cut it short."""

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Checks the loaders, and puts the callbacks on their buses."""
        if ctx.position.global_step == 0:  # not in a second fit; a resume is loaded after this
            self.validated_at, self.is_owed = 0, False
        self.view(ctx)  # a name that is not there is better known now
        if self.inference_mode:
            check_inference(ctx)
        if self._pipeline and self.val_model is None:  # which would have to be copied
            converting = "validation with model_convert_pipeline"
            refuse_sharded(
                self.trained_model(ctx), converting, "leave it out, or give it a whole val_model"
            )
        self._fellows = fellows_of(self, Validation, ctx.bus)
        self._first_name = first_names(self._fellows)[self]
        given = sources(self.data_loader, getattr(ctx.data, "tasks", ()))
        lists = self.callbacks * len(given) if self.share_callbacks else self.callbacks
        if len(lists) != len(given):
            raise PluginError(
                f"validation: share_callbacks=False with {len(lists)} lists of callbacks for "
                f"{len(given)} loaders; accepted: one list per loader"
            )
        processor = evaluation_processor(self.batch_processor, ctx)
        self._beside = modules_of(processor, ctx)
        if self.val_model is not None:
            self.val_model.to(ctx.device)
        self._runs = []
        training = [feed.loader for feed in getattr(ctx.data, "feeds", {}).values()]
        for source, callbacks in zip(given, lists, strict=True):
            data = Passes(source, ctx.device, equal=is_sharded(ctx.model), training=training)
            if callbacks:
                is_profiled = self._profile is not None and not self._runs
                own = [Named("profile_steps", self._profile, {})] if is_profiled else []
                inner = [*callbacks, *own]
                inner = without_writers(inner) if ctx.is_aside else inner
                is_own = self.batch_processor is not None
                loop = EvaluationLoop(self.log_interval, source.name)
                bus = inner_bus(inner, loop, processor, ctx, data.tasks, is_own=is_own)
                self._runs.append((source, data, bus))

    @hookimpl
    def on_step_end(self, ctx: Context) -> None:
        """Validates where an interval in steps is due."""
        if self.interval_by == "step":
            self._validate_due(ctx, "step")

    @hookimpl
    def on_epoch_end(self, ctx: Context) -> None:
        """Validates where an interval in epochs is due; not in an epoch that was cut short."""
        if self.interval_by == "epoch" and ctx.position.step == 0:
            self._validate_due(ctx, "epoch")

    @hookimpl
    def on_loop_end(self, ctx: Context) -> None:
        """Validates at the end, unless this step was validated, or a signal or error ended it."""
        if not ctx.position.global_step or ctx.exception is not None or ctx.is_aside:
            return
        wanted = [one for one in self._fellows.values() if one.val_on_train_end]
        if self._new(ctx, wanted) and not ctx.control.anywhere([stop_wanted()])[0]:
            self._validate_these(ctx, wanted, "end of the run")

    @hookimpl
    def validate(self, ctx: Context, reason: str) -> dict[str, Any] | bool:
        """Validates now, and publishes what was found on the training's bus.

        Of several validations the first one is called, and runs those that are asked.
        """
        fellows = list(self._fellows.values()) or [self]
        asked = [one for one in fellows if one.is_asked] or fellows
        if all(one.is_off for one in asked):
            return False
        runs = [one.run(ctx, reason) for one in asked if not one.is_off]
        return {name: value for found in runs for name, value in found.items()}

    def run(self, ctx: Context, reason: str) -> dict[str, Any]:
        """Evaluates on every loader.

        Returns:
            Published name to value, of the scalars; empty if a signal cut it short.
        """
        found = []
        with fenced(), torch.no_grad(), self.shown_model(ctx) as model, self._inside(model):
            for source, data, bus in self._runs:
                with data.fenced():
                    loader = source.name if len(self._runs) > 1 else ""
                    found.append(evaluate(bus, ctx, model, data, (self._first_name, loader)))
        self.is_owed = any(inner.is_cut for inner in found)
        if self.is_owed:
            why = "the end during a validation; it is made up for at resume"
            ctx.control.ask_alike(  # all have left it at the same batch
                Request("save", "validation", "validation cut short"),
                Request("stop run", "validation", why),
            )
            return {}
        self.validated_at = ctx.position.global_step
        metrics = self._publish(ctx, found)
        if ctx.rank == 0:
            log.info("validation (%s) after %d steps: %s", reason, self.validated_at, Said(metrics))
        return metrics

    @hookimpl(wrapper=True)
    def run_loop(self, ctx: Context) -> Generator[None, Any, Any]:
        """Makes up for what a signal cut short, before the first step of a resume."""
        owed = [one for one in self._fellows.values() if one.is_owed]
        if owed:
            place = ctx.position
            ctx.global_step_id = place.global_step - 1
            ctx.epoch_id = place.epoch if place.step else place.epoch - 1
            with asking(owed):
                ctx.emit.validate(ctx, "cut short before")
            serve_requests(ctx)
        return (yield)

    def published_names(self, ctx: Context) -> list[str]:
        """What its callbacks say that they will publish, by the names on the training's bus."""
        found = []
        for source, data, bus in self._runs:
            losses = ["*"] if self.batch_processor else expected_losses(ctx, data.tasks)
            inner = SimpleNamespace(bus=bus, optimizer=None, losses=losses)
            inner.val_metrics, loader = ctx.val_metrics, source.name if len(self._runs) > 1 else ""
            found += [outer_name(self._first_name, loader, n) for n in published_names(inner, bus)]
        return found

    def preview_marks(self, ctx: Context) -> list[tuple[int, str]]:
        """``(global step, label)`` of every planned validation, for ``hatbus preview``."""
        if self.is_off:
            return []
        name = first_names(fellows_of(self, Validation, ctx.bus))[self]
        label = "validation" if name == FIRST_NAME else f"validation {name}"
        every, unit, end = self.val_interval, self.interval_by, bool(self.val_on_train_end)
        return marks_every(label, every, unit, ctx, at_end=end)

    def state_dict(self) -> dict[str, Any]:
        """When it validated last, whether one is owed, and what its callbacks keep."""
        kept = states_of(self._runs)
        return {"validated_at": self.validated_at, "is_owed": self.is_owed, "callbacks": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes them back."""
        self.validated_at, self.is_owed = state["validated_at"], state["is_owed"]
        give_states(self._runs, state.get("callbacks", {}))

    def shown_model(self, ctx: Context) -> AbstractContextManager[nn.Module]:
        """The model to validate, in eval mode, with the weights to validate."""
        is_as_it_is = self.val_model is None and not self._pipeline and not self._beside
        if is_as_it_is and ctx.world_size == 1 and ctx.weights.current == self.view(ctx):
            model = self.trained_model(ctx)
            if not shown.range_switches(model):
                return shown.InEvalMode(model)
        return self._shown_model(ctx)

    @contextmanager
    def _shown_model(self, ctx: Context) -> Iterator[nn.Module]:
        own, pipeline = self.val_model, self._pipeline
        with ExitStack() as stack:
            if own is not None and not self.init_with_train_model:
                model = own
            else:
                showing = shown.showing(ctx, self.view(ctx))
                if own is None:
                    stack.enter_context(showing)
                    model = self.trained_model(ctx)
                else:
                    with showing:
                        state = self.train_state(ctx)
                        if self._placed is None:
                            self._placed = shown.loading_place(own, pipeline, [*state])
                        model, pipeline = self._placed
                        self._fill(model, state)
            for module in (model, *self._beside):
                stack.enter_context(eval_mode(module))
            if ctx.world_size > 1:
                stack.enter_context(shown.first_ranks_buffers(ctx, model))
            made = shown.converted(model, pipeline)
            if made is not model:
                made.eval()  # which an exported graph does without giving itself back
            switches = shown.range_switches(made)
            if switches:
                stack.enter_context(shown.switched_off(switches))
            yield made

    def _inside(self, model: nn.Module) -> AbstractContextManager[None]:
        return inference((model, *self._beside)) if self.inference_mode else nullcontext()

    def view(self, ctx: Context) -> str:
        """Name of the weight view to validate."""
        return shown.view_name(ctx, self.weights)

    def trained_model(self, ctx: Context) -> nn.Module:
        """The part of the trained model that is validated: all of it."""
        return ctx.model

    def train_state(self, ctx: Context) -> Mapping[str, torch.Tensor]:
        """The trained weights by the names that ``val_model`` has for them."""
        return ctx.model.state_dict()

    def _publish(self, ctx: Context, found: list[InnerContext]) -> dict[str, Any]:
        """Logs what was found on the training's bus; gives back the scalars."""
        metrics: dict[str, Any] = {}
        for (source, *_), inner in zip(self._runs, found, strict=True):
            ctx.storage.setdefault(self._first_name, {})[source.name] = inner.storage
            for kind, values in inner.published.items():
                named = {inner.name_in_run(n): v for n, v in values.items()}
                if self.inference_mode:
                    named = plain_tensors(named)
                metrics.update(named if kind == "scalar" else {})
                ctx.log(named, kind)
        return metrics

    def _fill(self, val_model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
        differences = shown.copy_weights(state, val_model, strict=self.strict_match)
        if differences != self._told:
            shown.warn_of_differences(differences)
        self._told = differences

    def is_due(self, ctx: Context, unit: str) -> bool:
        """Whether the interval, and the filters of the job, are due at the end of this unit."""
        n, index = self.val_interval, ctx.global_step_id if unit == "step" else ctx.epoch_id
        if n is None or unit != self.interval_by or (index + 1) % n:
            return False
        event = EVENTS[f"on_{unit}_end"]
        mine = [one.interval for one in ctx.bus.members.values() if one.plugin is self]
        return all(one.gate.is_open for one in mine if one and one.applies_to(event))

    def _validate_due(self, ctx: Context, unit: str) -> None:
        """Validates with all that are due; the next one of them finds nothing left to do."""
        if ctx.exception is not None:
            return
        due = [one for one in self._fellows.values() if one.is_due(ctx, unit)]
        every = sorted({one.val_interval or 0 for one in due})
        said = (f"every {n} {unit}s" if n > 1 else f"every {unit}" for n in every)
        self._validate_these(ctx, due, " and ".join(said))

    def _validate_these(self, ctx: Context, chosen: Sequence[Validation], reason: str) -> None:
        """Validates with those of the chosen that have not validated this very step."""
        if new := self._new(ctx, chosen):
            with asking(new):
                ctx.emit.validate(ctx, reason)

    def _new(self, ctx: Context, chosen: Sequence[Validation]) -> list[Validation]:
        step = ctx.position.global_step
        return [one for one in chosen if not one.is_off and one.validated_at != step]
