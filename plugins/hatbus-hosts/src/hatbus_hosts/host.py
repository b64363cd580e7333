"""``Host``: drives a bus of plugins from a training loop that another library owns.

The library says what is going on by its own callbacks; a subclass says the same to this class, by
the methods from ``begin`` to ``end``. Here it becomes hatbus's events, in hatbus's order::

    begin                               on_loop_begin, states of a checkpoint given back
      begin_epoch                       on_epoch_begin
        begin_step                      on_step_begin
          begin_batch                   on_batch_begin
            begin_forward, end_forward  on_forward_begin, on_forward_end
            begin_backward, end_backward
          end_batch                     on_batch_end
          begin_update                  clip_gradients, skip_update, on_optimizer_step_begin
          end_update                    on_optimizer_step_end
        end_step                        on_step_end
        serve                           requests are read
      end_epoch                         on_epoch_end
    end, or fail                        on_exception, on_loop_end

What was left out is made up for: a batch opens its step and epoch, an update ends its batch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import distributed

from hatbus import Bus, Context
from hatbus.bus import Moments
from hatbus.errors import HookError, PluginError
from hatbus.evaluation import StepLosses
from hatbus.log import log
from hatbus.loop import OpenSpans, Position
from hatbus.parallel import act_together
from hatbus_hosts.needs import Capabilities, check_needs, check_writes, is_read, is_replaced
from hatbus_hosts.states import Resume, check_taken, saved_state
from hatbus_hosts.straight import StraightEvents
from hatbus_hosts.work import Heard, Work, call_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from hatbus.loop import Request

RESUME: Final = "host"
"""The name under which a host's own part stands among the plugins."""
_ORDER: Final = ("validate", "stop epoch", "stop run", "save")


class Host(StraightEvents):
    """Plugins of hatbus in a loop of somebody else's.

    Args:
        plugins: instances, or ``{instance name: instance}``; or a ``Bus`` that holds them.
        run_dir: folder for the files of plugins that are given no path of their own.
        seed: for plugins that draw numbers.
        loss: of the model, for plugins that compute it themselves, such as ``validation``.
        drop_plugin_state: names whose states in a checkpoint are left out.
        save: called with a reason, writes a checkpoint in the host's own way; for a host that
            cannot be asked for one.
        validate: called with a reason, validates in the host's own way.
        work: for a subclass that does spans itself.

    Attributes:
        bus: holds the plugins.
        ctx: the state of the run; None before it begins.
        heard: hooks of torch's that last until the run is over.
        capabilities: what this host can deliver.

    Raises:
        PluginError: a plugin that cannot be used, or that needs what this host cannot deliver.
    """

    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(
        self,
        plugins: Sequence[object] | Mapping[str, object] | Bus,
        *,
        run_dir: str | Path | None = None,
        seed: int = 0,
        loss: Any = None,
        drop_plugin_state: Sequence[str] = (),
        save: Callable[[str], object] | None = None,
        validate: Callable[[str], object] | None = None,
        work: Work | None = None,
    ) -> None:
        self.bus = plugins if isinstance(plugins, Bus) else Bus(plugins)
        super().__init__()
        self._settings = {"run_dir": None if run_dir is None else Path(run_dir), "seed": seed}
        self._ways = {"save": save, "validate": validate}
        self._resume, self.heard = Resume(drop_plugin_state), Heard(self)
        self._hearing: torch.nn.Module | None = None
        if RESUME in self.bus.members:
            raise PluginError("this bus has a host already; give each host plugins of its own")
        parts = {"moments": Moments(), "batch_processor": work or Work(self, loss)}
        for name, part in parts.items():
            if f"core.{name}" not in self.bus.members:
                self.bus.register(part, f"core.{name}", core=True)
        self.bus.register(self._resume, RESUME)
        self.bus.set_tasks(())
        check_needs(self.bus, self.name, self.can())

    def can(self) -> Capabilities:
        """What this host can deliver with its options."""
        more = {}
        for wish, how in self._ways.items():
            row = f"request {wish}"
            if how is not None:
                more[row] = True
            elif str(self.capabilities[row]).startswith(f"with {wish}="):
                more[row] = False
        if is_replaced(self.bus, "validate"):
            more["request validate"] = True  # a plugin does it
        return Capabilities({**self.capabilities, **more})

    # ---- the run ------------------------------------------------------------------------------

    def begin(
        self,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None,
        device: torch.device | None = None,
        position: Position | None = None,
        writes: Mapping[str, str] | None = None,
        **values: Any,
    ) -> Context:
        """A run begins, or goes on from a checkpoint whose state was given to ``load_state_dict``.

        Args:
            model: the raw model.
            optimizer: the one optimizer.
            device: of the model; by default that of its first parameter.
            position: where the run goes on when no saved state says so.
            writes: what the host itself writes (``"optimizer.lr"``), and how to stop it from that.
            values: more attributes of the context: ``num_epochs``, ``steps_per_epoch`` ...

        Raises:
            PluginError: a plugin writes what the host writes.
        """
        if self.is_running:  # a run that ended with an error, of which nobody was told
            self.fail(HookError(f"the run in {self.name} before this one did not end"))
        check_writes(self.bus, self.name, writes or {})
        self.bus.check_states()
        first = next(model.parameters(), torch.empty(0))
        rank, world = _processes()
        if self.bus.rank != rank:
            self.bus.rank = rank
            self.bus.freeze()
        ctx = self.ctx = Context(
            self.bus,
            model=model,
            optimizer=optimizer,
            device=device or first.device,
            world_size=world,
            **self._settings,
            **values,
        )
        act_together(ctx)
        StepLosses().join(self.bus, ctx)
        ctx.position, ctx.updates = self._resume.place(position or Position())
        ctx.epoch_id, ctx.step_id = ctx.position.epoch, ctx.position.step
        ctx.global_step_id = ctx.position.global_step
        spans = self._spans = OpenSpans(ctx)
        self._run, self.has_failed, self._freezes = (ctx, spans, spans.opened), False, -1
        self.heard.structure(ctx)
        try:
            spans.enter("run_loop")
            self._end_left_over(ctx, spans)
        except BaseException as error:
            self.fail(error)
            raise
        self._since = time.perf_counter()
        return ctx

    def _end_left_over(self, ctx: Context, spans: OpenSpans) -> None:
        """Ends an epoch that was saved after its last step, whose end is still to come."""
        position = ctx.position
        if self.is_left_over(position, ctx.steps_per_epoch):
            ctx.step_id, ctx.global_step_id = position.step - 1, position.global_step - 1
            spans.enter("run_epoch")
            self.end_epoch()

    def is_left_over(self, position: Position, steps: int | None) -> bool:
        """Whether a run goes on behind the last step of an epoch.

        Args:
            position: of the run.
            steps: of an epoch, if that is known.
        """
        return steps is not None and position.step >= steps > 0

    def end(self) -> None:
        """The run is over."""
        if self._run is None:
            return
        self.end_epoch(is_complete=False)
        (ctx, spans, _), self._run = self._run, None
        try:
            spans.leave("run_loop")
            ctx.control.is_owed()  # several processes wait for each other
            ctx.control.tell_late()
            ctx.control.close()
        finally:
            self._over()

    def fail(self, error: BaseException) -> None:
        """The run ended with an error, which is for the caller to raise: everything is closed."""
        self._run = None
        if self._spans is not None and self._spans.names:
            self.has_failed = True
            self._spans.fail(error)
            self._over()

    def _over(self) -> None:
        self._hearing = None
        self.heard.remove()
        self.bus.keep_states()

    def hear_forward(self, model: torch.nn.Module) -> None:
        """Makes the calls of a module in a batch its forward passes, as far as plugins hear them.

        Args:
            model: whose calls are meant.
        """
        self._hearing = model
        self._look(*self.running())

    def _look(self, ctx: Context, spans: OpenSpans) -> None:
        """Sees also what plugins hear of the calls of a model: every hook on it costs its calls."""
        super()._look(ctx, spans)
        if self._hearing is None:
            return
        if spans.is_heard("forward"):
            self.heard.model(self._hearing, self.is_in_batch, self.end_forward)
        elif is_read(self.bus, "model_outs", but=RESUME):
            self.heard.outputs(self._hearing)
        else:
            self.heard.nothing()

    # ---- requests -----------------------------------------------------------------------------

    def requests(self) -> list[Request]:
        """What plugins asked for since the last time, in the order in which it is to be done."""
        ctx, _ = self.running()
        return sorted(ctx.control.take(), key=lambda one: _ORDER.index(one.wish))

    @property
    def is_asked(self) -> bool:
        """Whether there is anything to serve."""
        ctx, _, _ = self._run or self._unprepared()
        return bool(ctx.control.pending) or ctx.control.is_shared

    def serve(self, do: Mapping[str, Callable[[str], object]]) -> None:
        """Does what plugins asked for.

        Args:
            do: wish to what is called with the reason; of ``"validate"``, ``"stop epoch"``,
                ``"stop run"`` and ``"save"``. False is: nothing was done.
        """
        ctx, _ = self.running()
        if not ctx.control.due():
            return
        for request in self.requests():
            served: object = False
            if request.wish == "validate" and is_replaced(self.bus, "validate"):
                served = ctx.emit.validate(ctx, request.reason)
            how = self._ways.get(request.wish) or do.get(request.wish)
            if served is False and how is not None:
                served = how(request.reason)
            if served is False:
                log.warning(
                    "%s: asked for by %s, but %s cannot do it", request.wish, request.by, self.name
                )

    # ---- state --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What plugins keep, and where the run is; ``save_checkpoint`` is wrapped around this."""
        if self.ctx is None or self._spans is None:
            return {}
        if self.is_running:
            self.settle()
        return saved_state(self.ctx, self._spans, self.is_running)

    def settle(self) -> None:
        """Before a save: ends the step, where its update is behind it and only its end to come."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes a state; plugins get theirs when the run begins.

        Raises:
            CheckpointError: there is a state of a plugin that is not here.
        """
        if state:
            check_taken(self.bus, state["plugins"], self._resume.dropped)
            self._resume.state = dict(state)

    def checkpoint_saved(self, path: str | Path) -> None:
        """A checkpoint of the host is durable."""
        ctx, _ = self.running()
        if ctx.emit.on_checkpoint_saved is not None:
            ctx.emit.on_checkpoint_saved(ctx, Path(path))

    def call_model(self, ctx: Context) -> Any:
        """The model's outputs for ``ctx.batch``, for a plugin that asks for them."""
        return call_model(ctx)

    # ---- inside -------------------------------------------------------------------------------

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """An error that leaves the block ends the run, for hosts that tell nobody of errors."""
        if error is not None:
            self.fail(error)


def _processes() -> tuple[int, int]:
    """This process's rank and the number of processes, as the host has made their group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
