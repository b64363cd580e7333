"""The trainer: puts a model, data and plugins on a bus and runs the loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hatbus.batches.batch_processor import BatchProcessor
from hatbus.batches.compiling import Compiling
from hatbus.batches.parts import built_parts
from hatbus.batches.precision import check_precision
from hatbus.bus.blame import locate
from hatbus.bus.bus import Bus, named_instances
from hatbus.core_parts import core_parts, saves
from hatbus.data.steps import Steps
from hatbus.errors import JobError
from hatbus.evaluation.aside import validated
from hatbus.evaluation.numbers import scalars_of
from hatbus.evaluation.predicting import predictions
from hatbus.evaluation.rehearsal import rehearsed
from hatbus.evaluation.train_loss import EVERY, TrainLoss
from hatbus.foreign_arguments import explained
from hatbus.initial_weights import start_from
from hatbus.log import log
from hatbus.loop.beside import modules_beside, warn_of_strangers
from hatbus.loop.context import Context
from hatbus.loop.files import forget_files
from hatbus.loop.limits import set_limits
from hatbus.loop.modes import TrainModes, tell_of_eval
from hatbus.loop.module_names import GIVEN
from hatbus.loop.shown import ShowsItself
from hatbus.loop.signals import Signals
from hatbus.loop.structure import structure_changed, structure_watched
from hatbus.loop.weights import Weights
from hatbus.option_values import seconds, whole
from hatbus.parallel.agreed import Timeouts
from hatbus.parallel.beside import share_at_start
from hatbus.parallel.device import follow, own_device, placed
from hatbus.parallel.launch import rank_and_world
from hatbus.parallel.modes.exchange import PARALLEL, wrapped
from hatbus.parallel.modes.start import check_training, plan_for, whole_or_later
from hatbus.parallel.processes import (
    TIMEOUTS,
    begin_together,
    control_of,
    joined,
    let_go,
)
from hatbus.parallel.stopping import end_agent
from hatbus.runs.of_trainer import ScriptRun
from hatbus.trainer_arguments import (
    check_arguments,
    check_closure,
    check_limits,
    check_losses,
    check_plan,
    check_resume,
)

if TYPE_CHECKING:
    from hatbus.data.task_sampler import TaskSampler
    from hatbus.parallel import Parallel


class Trainer(ShowsItself):
    """Trains a model; everything beyond the loop is a plugin.

    Args:
        model: the model, or ``torch.compile(model)`` (events see the model inside); it is moved to
            ``device``. Parts that are in eval mode train in it.
        optimizer: over the model's parameters, or some of them.
        data: an iterable of batches, or ``{task: iterable}``. A batch is ``(inputs, target)``; of
            one with more parts the first is the inputs, and the tuple of the rest is the target.
        loss: ``loss(model_outs, target)`` giving a 0-d tensor or ``{name: 0-d tensor}``; or
            ``{task: loss}``. Without it the model gets whole batches, a mapping by keywords where
            its forward takes them, and returns its losses; or a plugin has ``compute_loss``.
        plugins: instances, or ``{instance name: instance}``; one that keeps a state serves one
            trainer only. The second of a kind in a list is named ``<kind>_2``.
        device: ``"auto"``: where the model is if that is an accelerator, else a GPU if CUDA has
            one, else the CPU; ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or a ``torch.device``.
        seed: of the run's own choices (task sampler, data order); plugins may use it too.
        task_sampler: which tasks a step holds (``hatbus.data.OneTask`` ...); all by default.
        accumulate: batches per task and step (gradient accumulation).
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` (autocast; fp16 with a loss scaler).
        compile: ``True``: forward pass and losses; or ``torch.compile``'s options, and ``loss``.
        batch_processor: your own in place of ``BatchProcessor(loss)``.
        modules: modules beside the model by name, such as a critic, that the optimizer trains or
            that keep something. They are moved, saved, resumed and shared as the model is; so is a
            loss that is a module or holds one, without being named here.
        train_metrics, val_metrics: handed to every event under these names.
        run_dir: where the run gets a folder of its own, at the first ``fit`` (``ctx.run_dir``).
        run_name: of that folder; by default the time.
        resume: ``"auto"``, ``"last"``, ``"best"``, a checkpoint's path or ``"new"``, as in a job's
            ``[run]``; goes before that of the checkpoint plugin. The newest run of the same script
            with the same arguments goes on in its folder.
        nan: ``"raise"``, ``"skip_step"`` or ``"ignore"``, when a loss is not finite; weights that
            are not are never saved.
        log_every: steps between two points of ``train/<loss>_step``, the mean loss since the last
            one; 0: none, only ``train/<loss>`` of every epoch.
        init_from: a run, a checkpoint or a file whose weights the model gets, and nothing else; or
            the options of ``hatbus_checkpoint.InitFrom`` as a mapping.
        timeout: seconds, or ``"10 min"``, that processes wait for one that is late; then all end.
        start_timeout: the same, until the first step is over.
        parallel: how several processes share the model: ``"ddp"``, ``"fsdp2"``, ``"hsdp"``, or
            ``hatbus.parallel.Parallel(mode, ...)`` with options; None: whole on each (DDP), or as
            you have sharded it.

    Each of them may be a config, ``dict(type=..., ...)``, nested or not (see
    ``hatbus.discovery.build``); an optimizer's then needs no ``params``.

    Attributes:
        bus: holds the plugins; more may be registered, also while the run is on.
        ctx: the state of the run.

    Raises:
        HatbusError: an argument or plugin that cannot be used.
    """

    @explained("Trainer()")
    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Any,
        loss: Any = None,
        plugins: Sequence[object] | Mapping[str, object] = (),
        *,
        device: str | torch.device = "auto",
        seed: int = 0,
        task_sampler: TaskSampler | None = None,
        accumulate: int = 1,
        precision: str = "fp32",
        compile: bool | Mapping[str, Any] = False,  # noqa: A002 - torch's own word
        batch_processor: BatchProcessor | None = None,
        train_metrics: Sequence[Any] = (),
        val_metrics: Sequence[Any] = (),
        modules: Mapping[str, torch.nn.Module] | None = None,
        run_dir: str | Path | None = None,
        run_name: str | None = None,
        resume: str | Path | None = None,
        nan: str = "raise",
        log_every: int = EVERY,
        init_from: str | Path | Mapping[str, Any] | None = None,
        timeout: float | str = "10 min",
        start_timeout: float | str = "30 min",
        parallel: str | Mapping[str, Any] | Parallel | None = None,
    ) -> None:
        self._run = ScriptRun(run_dir, run_name, resume)
        parts = built_parts(model=model, optimizer=optimizer, loss=loss, processor=batch_processor)
        more = built_parts(data=data, sampler=task_sampler, train=train_metrics, val=val_metrics)
        more |= built_parts(modules=modules)
        model, optimizer, loss = parts["model"], parts["optimizer"], parts["loss"]
        batch_processor, data, task_sampler = parts["processor"], more["data"], more["sampler"]
        check_arguments(model, optimizer, loss, batch_processor)
        waiting = Timeouts(seconds("start_timeout", start_timeout), seconds("timeout", timeout))
        plain = getattr(model, "_orig_mod", model)  # events see the model, not its wrapper
        self._compiling = Compiling(compile, model if plain is not model else None)
        self._precision, self._nan, self._doing = check_precision(precision), nan, ""
        rank, world = rank_and_world()
        place = own_device(device, plain, rank, world)
        plan = plan_for(parallel, plain, place, world)
        steps = Steps(data, task_sampler, accumulate, place)
        steps.adopt_seed(seed, anew=False)  # the loader may be in use elsewhere
        self._signals, self._modes = Signals(), TrainModes()
        self._train_loss = TrainLoss(log_every, only_finite=nan == "skip_step")
        processor = self._processor = batch_processor or BatchProcessor(loss)
        self.bus = Bus(rank=rank)
        self._register_core(
            core_parts(processor, steps, place, nan, self._precision, self._signals, optimizer)
        )
        for name, instance in named_instances(plugins):
            self.bus.register(instance, name)
        self.ctx = Context(
            self.bus,
            model=whole_or_later(plan, plain, place, device),
            optimizer=optimizer,
            data=steps,
            data_loader=data,
            device=place,
            rank=rank,
            world_size=world,
            seed=seed,
            steps_per_epoch=steps.steps_per_epoch,
            train_metrics=more["train"],
            val_metrics=more["val"],
        )
        self.ctx.storage |= {"resume": self._run.resume, TIMEOUTS: waiting, PARALLEL: plan}
        beside = modules_beside(model, processor, optimizer, more["modules"])
        self.ctx.modules = {n: placed(module, place, device) for n, module in beside.items()}
        follow(optimizer)
        if rank == 0:
            warn_of_strangers(optimizer, self.ctx.all_modules)
        start_from(self, init_from, Path.cwd())
        if precision == "fp16":
            self.ctx.scaler = torch.amp.GradScaler(place.type)

    @explained("fit()")
    def fit(
        self,
        num_epochs: int | None = None,
        num_steps: int | None = None,
        *,
        limit_steps: int | None = None,
        max_time: float | str | None = None,
        sanity_steps: int = 0,
    ) -> Context:
        """Runs the loop for so many epochs or optimizer steps in all (a resumed run's included).

        A second ``fit`` goes on where the first ended, in the middle of an epoch too: 5 steps and
        then ``num_steps=9`` see the same batches as 9 at once.

        Args:
            num_epochs: epochs in all.
            num_steps: optimizer steps in all, in place of epochs.
            limit_steps: for a quick look: end after so many steps of this fit, as if the data was
                over, and take as many batches of each loader in validations.
            max_time: end after a step when so much time is over, with the state saved: seconds, or
                ``"2h30m"``, ``"90 min"``, ``"2:30:00"``; ``ctx.control.stopped`` tells.
            sanity_steps: batches of each loader to validate before the first step; unpublished.

        Returns:
            The context, with the counters as they are at the end.

        Raises:
            JobError: not exactly one plan, or a number that cannot be used.
            HatbusError: what went wrong in the run, where it can be said in one line.
            SystemExit: a signal ended the run (75: it is saved); of Ctrl-C a KeyboardInterrupt.
        """
        ctx = self.ctx
        time_limit = check_limits(limit_steps, max_time, sanity_steps)
        self._plan(num_epochs, num_steps)
        set_limits(self.bus, limit_steps, time_limit, saves=saves(self.bus))
        ctx.limit_steps, ctx.exception = limit_steps, None
        if sanity_steps and ctx.position.global_step == 0:
            with self._alone("fit()"):
                validated(self.bus, ctx, limit_steps=sanity_steps)
            log.info("sanity: %d batches of each loader were validated", sanity_steps)
        with self._alone("fit()"), self._run.held(ctx, self.bus), joined(ctx):
            self._prepare()
            ctx.emit = self.bus.emitter()
            try:
                with structure_watched(ctx):
                    ctx.emit.run_loop(ctx)
            except BaseException as error:
                ctx.exception = error
                locate(error, ctx)
                raise
            finally:
                if ctx.position.global_step > 0:
                    self.bus.keep_states()
                self._modes.leave(ctx.model)
                ctx.data.leave(ctx)
            ctx.control.tell_late()
            let_go(ctx)
        self._signals.leave(ctx, end_agent)
        return ctx

    @explained("validate()")
    def validate(
        self, weights: str | None = None, limit_steps: int | None = None
    ) -> dict[str, float]:
        """Validates the model as it is, without training.

        The validations of the trainer run as they would in a training, each over its own loaders.
        Nothing else notices: weights, counters, random state, what plugins keep and what was
        published before are as they were, and nothing is written. Of the other plugins only those
        take part that change the model or offer weights (stages ``setup``, ``train``,
        ``average``), or that implement ``validate``, ``forward`` or ``compute_loss``.

        Args:
            weights: the weight view to validate, such as ``"raw"`` or ``"ema"``; None: as each
                validation says.
            limit_steps: batches of each loader at most; None: all of them.

        Returns:
            Name to value of what this validation published, and of nothing older.

        Raises:
            JobError: nothing validates, or a fit is under way.
            PluginError: there are no such weights.
        """
        with self._alone("validate()"):
            check_limits(limit_steps)
            return dict(scalars_of(validated(self.bus, self.ctx, weights, limit_steps)))

    def predict(
        self, loader: Any, weights: str | None = None, task: str | None = None
    ) -> Iterator[Any]:
        """Gives the model's outputs for every batch of a loader, one after the other.

        The model is in eval mode and gets no gradients; plugins around ``forward`` take part, and
        the same others as in ``validate``. The training does not notice. Until the last output was
        taken, or the iterator closed, nothing else can be done with the trainer.

        Over several processes each gets the outputs of its own part of the samples; with a
        ``hatbus.data.loader`` each sample is in one part only.

        Args:
            loader: of batches as the training has them; the target may be left out, and is passed
                over. ``hatbus.data.loader(..., shuffle=False)`` keeps the order of the data set.
            weights: the weight view, such as ``"raw"``; None: EMA if there is one, else raw.
            task: whose batches they are, in a trainer with tasks.

        Raises:
            DataError: no loader, or one that gives no batch.
            JobError: no such task, or a fit is under way.
            PluginError: there are no such weights.
        """
        with self._alone("predict()"):
            yield from predictions(self.bus, self.ctx, loader, weights, task)

    @explained("rehearse()")
    def rehearse(
        self, num_steps: int, plugins: Sequence[object] | Mapping[str, object] = ()
    ) -> Context:
        """Trains for some steps, and undoes it: for a look at what training does.

        The data begins at the start of the present epoch. Of the trainer's plugins those take part
        that change the model or its gradients; schedules, writers and validations do not. Weights,
        buffers, modes, optimizer, plugins, random state and the place in the data are afterwards
        as before, bit for bit, also when a step fails. Meanwhile there are two copies of the
        weights and of the optimizer's state.

        Args:
            num_steps: at most; a plugin may stop earlier, by ``ctx.control.stop("run")``.
            plugins: that take part too; only here, and they keep what they saw.

        Returns:
            The rehearsal's own context.

        Raises:
            JobError: no such number, or a fit is under way.
        """
        whole("rehearse: num_steps", num_steps, 1)
        with self._alone("rehearse()"):
            check_closure(self.ctx.optimizer, self.bus)
            check_losses(self._processor, self.ctx.data.tasks, self.bus)
            return rehearsed(self.bus, self.ctx, num_steps, plugins)

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """One thing at a time: plugins would be prepared anew in the middle of a run."""
        if self._doing:
            raise JobError(
                f"{what} was called inside {self._doing}; a plugin asks for a validation by "
                "ctx.control.validate()"
            )
        self._doing = what
        try:
            yield
        finally:
            self._doing = ""

    def _plan(self, num_epochs: int | None, num_steps: int | None) -> None:
        """Checks what can be known before a fit, and writes its plan into the context."""
        ctx = self.ctx
        check_plan(num_epochs, num_steps)
        check_training(ctx)
        check_closure(ctx.optimizer, self.bus)
        check_resume(ctx.storage["resume"], self.bus)
        if num_epochs is not None:
            ctx.data.check_epochs_end()
        ctx.num_epochs, ctx.num_steps = num_epochs, num_steps
        per_epoch = ctx.steps_per_epoch
        ctx.total_steps = num_steps
        if num_epochs is not None and per_epoch is not None:
            ctx.total_steps = num_epochs * per_epoch
        self.bus.set_tasks(ctx.data.tasks)
        check_losses(self._processor, ctx.data.tasks, self.bus)

    def _prepare(self) -> None:
        """What has to be made anew for every ``fit``: requests, views, the model's wrappers."""
        ctx = self.ctx
        begin_together(ctx, precision=self._precision, nan=self._nan)
        ctx.data.adopt_seed(ctx.seed)  # another trainer may have the same loader
        if ctx.rank == 0 and ctx.position.global_step == 0:
            ctx.data.warn(ctx.world_size, saves=saves(self.bus))
        forget_files(ctx)
        ctx.weights = Weights()  # a view of a plugin that was taken off the bus must not stay
        ctx.control = control_of(ctx)
        structure_changed(ctx)  # what was done between two fits, nobody said
        model: Any = ctx.model
        ctx.storage[GIVEN] = model
        in_eval = self._modes.enter(model)
        if ctx.rank == 0 and ctx.position.global_step == 0:
            tell_of_eval(model, in_eval)
        model = self._compiling.applied(model, self._processor)
        share_at_start(ctx)
        self._train_loss.join(self.bus, ctx)
        ctx.wrapped_model = wrapped(ctx, model)

    def _register_core(self, parts: Mapping[str, object]) -> None:
        """Registers hatbus's own parts."""
        for name, part in parts.items():
            self.bus.register(part, f"core.{name}", core=True)
