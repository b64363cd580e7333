"""``attach_ignite``: plugins on an engine of PyTorch-Ignite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from hatbus.errors import JobError, PluginError
from hatbus.loop import Position
from hatbus_hosts.capabilities import IGNITE
from hatbus_hosts.host import Host
from hatbus_hosts.versions import check_version
from hatbus_hosts.work import named_losses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from hatbus import Bus
    from hatbus_hosts.needs import Capabilities


class IgniteHost(Host):
    """What ``attach_ignite`` gives, to be saved by Ignite's ``Checkpoint``."""

    name = "attach_ignite"
    capabilities: ClassVar[Capabilities] = IGNITE

    def __init__(
        self,
        engine: Any,
        plugins: Sequence[object] | Mapping[str, object] | Bus,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: torch.nn.Module | None,
        evaluator: Any,
        accumulate: int,
        **options: Any,
    ) -> None:
        super().__init__(plugins, loss=loss, **options)
        self.engine, self.model, self.optimizer = engine, model, optimizer
        self._loss, self._accumulated, self._batches = loss, accumulate, 0
        self._weight = 1.0 / accumulate
        self.ends_batch_before_update = loss is not None
        self._listen(evaluator)

    def _listen(self, evaluator: Any) -> None:
        from ignite.engine import Events

        on = self.engine.add_event_handler
        on(Events.STARTED, self._started)
        on(Events.EPOCH_STARTED, self._epoch_started)
        on(Events.ITERATION_STARTED, self._iteration_started)
        on(Events.ITERATION_COMPLETED, self._iteration_completed)
        on(Events.EPOCH_COMPLETED, self._epoch_completed)
        on(Events.COMPLETED, lambda: self.end())
        on(Events.EXCEPTION_RAISED, self._raised)
        if evaluator is not None:
            evaluator.add_event_handler(Events.STARTED, self._evaluated, "begin")
            evaluator.add_event_handler(Events.COMPLETED, self._evaluated, "end")

    # ---- what the engine says -----------------------------------------------------------------

    def _started(self) -> None:
        state, accumulated = self.engine.state, self._accumulated
        length = state.epoch_length
        per_epoch = None if length is None else -(-length // accumulated)
        epochs = state.max_epochs
        total = None if per_epoch is None or epochs is None else per_epoch * epochs
        done = 0 if not length else state.iteration % length
        self._batches = state.iteration % accumulated  # an engine counts on over epochs
        self.begin(
            model=self.model,
            optimizer=self.optimizer,
            position=Position(state.epoch, done // accumulated, state.iteration // accumulated),
            data_loader=state.dataloader,
            num_epochs=epochs,
            steps_per_epoch=per_epoch,
            total_steps=total,
        )
        self.hear_forward(self.model)
        if self._loss is not None:
            self.heard.loss(self._loss)
        self.heard.optimizer(self.optimizer, self._before_update, self._after_update)

    def is_left_over(self, position: Position, steps: int | None) -> bool:
        """By the engine's own count: an epoch begins with the rest of a step of the one before."""
        iteration, length = self.engine.state.iteration, self.engine.state.epoch_length
        return bool(position.step and length and iteration % length == 0)

    # An engine whose error somebody swallows goes on; for plugins the run is over: `has_failed`.

    def _epoch_started(self) -> None:
        if not self.has_failed:
            self.begin_epoch()

    def _iteration_started(self) -> None:
        if self.has_failed:
            return
        self.begin_batch(self.engine.state.batch, self._weight)
        self._batches += 1

    def _before_update(self, *_: Any) -> None:
        if self._spans is not None and "run_step" in self._spans.opened:
            self.begin_update()

    def _after_update(self, *_: Any) -> None:
        if self._spans is None or "optimizer_step" not in self._spans.opened:
            return
        self.end_update()
        if self.ends_batch_before_update:
            self._batches = 0
            self.end_step()

    def settle(self) -> None:
        """Ends a step that is over: who saves may be told of an iteration before this is."""
        from ignite.engine import Events

        (ctx, _), state = self.running(), self.engine.state
        is_done = self.engine.last_event_name == Events.ITERATION_COMPLETED
        ends_epoch = is_done and state.epoch_length and state.iteration % state.epoch_length == 0
        if ctx.committed or ends_epoch:
            self._end_iteration()
        if ends_epoch:
            self.end_step()

    def _iteration_completed(self) -> None:
        if self.has_failed:
            return
        ctx, _, _ = self._run or self._unprepared()
        self._end_iteration()
        if ctx.control.pending or ctx.control.is_shared:
            self._asked()

    def _end_iteration(self) -> None:
        ctx, _, opened = self._run or self._unprepared()
        if "run_batch" in opened:
            self.end_batch(None if ctx.losses else named_losses(self.engine.state.output))
        if "run_step" in opened and (ctx.committed or self._batches >= self._accumulated):
            self._batches = 0
            self.end_step()

    def _epoch_completed(self) -> None:
        if not self.has_failed:
            self.end_epoch()
            if self.is_asked:
                self._asked()

    def _evaluated(self, evaluator: Any, what: str) -> None:
        if not self.is_running:
            return
        if what == "begin":
            self.begin_validation()
        else:
            metrics = evaluator.state.metrics.items()
            numbers = {n: v for n, v in metrics if _is_number(v)}
            self.end_validation(numbers)

    def _raised(self, error: BaseException) -> None:
        """Ends the run; raises again unless others listen, whose affair the error then is.

        An engine swallows errors as soon as anybody listens, so to listen must not be enough.
        """
        from ignite.engine import Events

        self.fail(error)
        if len(self.engine._event_handlers[Events.EXCEPTION_RAISED]) == 1:  # noqa: SLF001 - shown nowhere else
            raise error

    # ---- inside -------------------------------------------------------------------------------

    def _asked(self) -> None:
        self.serve(
            {
                "stop epoch": lambda _: self.engine.terminate_epoch(),
                "stop run": lambda _: self.engine.terminate(),
            }
        )


def attach_ignite(
    engine: Any,
    plugins: Sequence[object] | Mapping[str, object] | Bus,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: torch.nn.Module | None = None,
    evaluator: Any = None,
    accumulate: int = 1,
    **options: Any,
) -> IgniteHost:
    """Puts plugins on a trainer engine of PyTorch-Ignite.

    To save what plugins keep, give the result to Ignite's checkpoint:
    ``Checkpoint({"hatbus": host, "model": model, ...}, ...)``.

    Args:
        engine: that trains.
        plugins: as for ``Host``.
        model: that the engine trains.
        optimizer: of it.
        loss: the loss module that the engine calls, by which losses are known before the update.
        evaluator: an engine that validates; its metrics are published.
        accumulate: batches per update, where the engine accumulates gradients.
        options: of ``Host``.

    Raises:
        JobError: ``accumulate`` is no such number.
        PluginError: a plugin that cannot be used here.
    """
    check_version("pytorch-ignite")
    if accumulate < 1:
        raise JobError(f"attach_ignite: accumulate is {accumulate!r}; accepted: 1 or more")
    if not hasattr(engine, "add_event_handler"):
        raise PluginError(f"attach_ignite: {engine!r:.80} is no engine of Ignite's")
    return IgniteHost(
        engine,
        plugins,
        model=model,
        optimizer=optimizer,
        loss=loss,
        evaluator=evaluator,
        accumulate=accumulate,
        **options,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or getattr(value, "ndim", 1) == 0
