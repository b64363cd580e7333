"""``AccelerateHost``: plugins in a loop that is written with an ``Accelerator``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hatbus import hookimpl
from hatbus.log import log
from hatbus_hosts.capabilities import ACCELERATE
from hatbus_hosts.host import Host
from hatbus_hosts.needs import is_replaced
from hatbus_hosts.versions import check_version
from hatbus_hosts.work import Work, may_skip_update

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    import torch

    from hatbus import Bus, Context
    from hatbus.loop import OpenSpans
    from hatbus_hosts.needs import Capabilities


_CALLS: Final = ("forward", "compute_loss", "backward")
"""The spans whose work the loop gives the host to do."""
_NO_STEP = (
    "AccelerateHost: step %d came to its end without host.step(), so plugins hear of no update "
    "there; call host.step() in the place of optimizer.step()"
)


class _Calls(Work):
    """The work of the spans that the loop does through the host."""

    now: Callable[[], Any] | None = None

    @hookimpl(trylast=True)
    def forward(self, ctx: Context) -> Any:
        """What the loop gave to do; a plugin that asks by itself gets a forward pass."""
        now, self.now = self.now, None
        return super().forward(ctx) if now is None else now()

    @hookimpl(trylast=True)
    def compute_loss(self, ctx: Context) -> Any:
        """What the loop gave to do."""
        now, self.now = self.now, None
        return super().compute_loss(ctx) if now is None else now()

    @hookimpl(trylast=True)
    def backward(self, ctx: Context) -> Any:
        """What the loop gave to do."""
        now, self.now = self.now, None
        return super().backward(ctx) if now is None else now()

    @hookimpl(trylast=True)
    def optimizer_step(self, ctx: Context) -> Any:
        """What the loop gave to do."""
        now, self.now = self.now, None
        return super().optimizer_step(ctx) if now is None else now()


class AccelerateHost(Host):
    """Plugins in a loop with an ``Accelerator``, as a context around that loop.

    The loop's parts run through it: ``epochs``, ``batches``, ``forward``, ``compute_loss``,
    ``backward``, ``step``. ``accelerator.save_state`` and ``load_state`` keep what plugins keep.

    Args:
        accelerator: the ``accelerate.Accelerator``.
        plugins: as for ``Host``.
        model: as ``prepare`` gave it; plugins see the raw one inside.
        optimizer: as ``prepare`` gave it.
        data_loader: as ``prepare`` gave it.
        num_epochs: that are planned.
        checkpoint_dir: where a save that a plugin asks for goes, in a folder ``step-<n>``.
        options: of ``Host``.

    Raises:
        PluginError: a plugin that cannot be used here.
    """

    name = "AccelerateHost"
    capabilities: ClassVar[Capabilities] = ACCELERATE

    def __init__(
        self,
        accelerator: Any,
        plugins: Sequence[object] | Mapping[str, object] | Bus,
        *,
        model: torch.nn.Module,
        optimizer: Any,
        data_loader: Any = None,
        num_epochs: int | None = None,
        checkpoint_dir: str | Path | None = None,
        **options: Any,
    ) -> None:
        check_version("accelerate")
        if checkpoint_dir is not None:
            options.setdefault("save", self._save_in(Path(checkpoint_dir)))
        self._calls = _Calls(self, options.get("loss"))
        super().__init__(plugins, work=self._calls, **options)
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.data_loader, self.num_epochs = data_loader, num_epochs
        self._stopped, self._is_told = "", False
        self._may_skip = True
        self._free_at = dict.fromkeys(_CALLS, -1)
        accelerator.register_for_checkpointing(self)

    def __enter__(self) -> AccelerateHost:
        accelerator, size = self.accelerator, _length(self.data_loader)
        steps = accelerator.gradient_accumulation_steps
        per_epoch = None if size is None else -(-size // steps)
        epochs = self.num_epochs
        total = None if per_epoch is None or epochs is None else per_epoch * epochs
        self._stopped = ""
        self._may_skip = accelerator.scaler is not None or may_skip_update(self.optimizer)
        self.begin(
            model=accelerator.unwrap_model(self.model),
            optimizer=getattr(self.optimizer, "optimizer", self.optimizer),
            device=accelerator.device,
            wrapped_model=self.model,
            scaler=accelerator.scaler,
            data_loader=self.data_loader,
            num_epochs=epochs,
            steps_per_epoch=per_epoch,
            total_steps=total,
        )
        accelerator.step = 0  # a run goes on with the first batch of a step
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """The run is over, or ended with an error."""
        if error is not None:
            self.fail(error)
        else:
            self.end()

    # ---- the loop's parts ---------------------------------------------------------------------

    def epochs(self, count: int | None = None) -> Iterator[int]:
        """The numbers of the epochs that are still to do.

        Args:
            count: of all epochs; by default ``num_epochs``.
        """
        ctx, _ = self.running()
        last = count if count is not None else self.num_epochs
        while self._stopped != "run" and (last is None or ctx.position.epoch < last):
            self._stopped = ""
            self.begin_epoch()
            yield ctx.position.epoch
            self.end_epoch(is_complete=self._stopped != "run")
            self._serve()

    def batches(self, loader: Iterable[Any] | None = None) -> Iterator[Any]:
        """The batches of an epoch; in a resumed one those that are left.

        Args:
            loader: by default ``data_loader``.
        """
        (ctx, spans), accelerator = self.running(), self.accelerator
        control = ctx.control
        given: Any = self.data_loader if loader is None else loader
        done = ctx.position.step * accelerator.gradient_accumulation_steps
        if done:
            given = accelerator.skip_first_batches(given, done)
        weight, state = 1.0 / accelerator.gradient_accumulation_steps, accelerator.gradient_state
        for batch in given:
            self.begin_batch(batch, weight)
            yield batch
            if state.sync_gradients:
                if "run_batch" in spans.opened and not self._is_told:
                    self._is_told = True
                    log.warning(_NO_STEP, ctx.global_step_id)
                self.end_step()
                if control.pending or control.is_shared:
                    self._serve()
            else:
                self.end_batch()
            if self._stopped:
                break

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """``model(*args, **kwargs)``; plugins may stand around it or do it themselves."""
        ctx, _, _ = self._run or self._unprepared()
        if self._free_at["forward"] != self.bus.freezes and self._hears("forward"):
            self._calls.now = lambda: self.model(*args, **kwargs)
            ctx.model_outs = ctx.emit.forward(ctx)
            return ctx.model_outs
        ctx.model_outs = outs = self.model(*args, **kwargs)
        return outs

    def compute_loss(self, loss: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """``loss(*args, **kwargs)``, a 0-d tensor; plugins may stand around it."""
        ctx, _, _ = self._run or self._unprepared()
        if self._free_at["compute_loss"] != self.bus.freezes and self._hears("compute_loss"):
            self._calls.now = lambda: {"loss": loss(*args, **kwargs)}
            ctx.losses = ctx.emit.compute_loss(ctx)
            found: Any = sum(ctx.losses.values()) if len(ctx.losses) > 1 else ctx.losses["loss"]
            return found  # type: ignore[no-any-return]  # a tensor, as the loss gave it
        value: torch.Tensor = loss(*args, **kwargs)
        ctx.losses = {"loss": value}
        return value

    def backward(self, loss: torch.Tensor) -> None:
        """``accelerator.backward(loss)``.

        Args:
            loss: 0-d, of the batch; of ``compute_loss`` or the loop's own.
        """
        ctx, _, _ = self._run or self._unprepared()
        ctx.loss = loss
        if not ctx.losses:
            ctx.losses = {"loss": loss}
        if self._free_at["backward"] != self.bus.freezes and self._hears("backward"):
            self._calls.now = lambda: bool((self.accelerator.backward(ctx.loss), True)[1])
            ctx.emit.backward(ctx)
        else:
            self.accelerator.backward(loss)

    def step(self) -> bool:
        """The update, where the accelerator's accumulation makes one.

        Returns:
            Whether it was committed.
        """
        if not self.accelerator.gradient_state.sync_gradients:
            self.running()
            self.optimizer.step()  # which does nothing now
            return False
        if self._update_at != self.bus.freezes:
            return self._step_on_the_bus()
        if self.begin_update():
            return False
        self.optimizer.step()
        skipped = self._may_skip and self.accelerator.optimizer_step_was_skipped
        return self.end_update(committed=not skipped)

    def _step_on_the_bus(self) -> bool:
        """The same, where plugins decide, or stand around the update or replace it."""
        ctx, _, _ = self._run or self._unprepared()
        self.end_batch()
        ctx.losses = self._losses or {}
        if self.decided():
            return False
        self._calls.now = self._make_update
        ctx.emit.optimizer_step(ctx)
        return ctx.committed

    def _make_update(self) -> bool:
        self.optimizer.step()
        return not self.accelerator.optimizer_step_was_skipped

    def _look(self, ctx: Context, spans: OpenSpans) -> None:
        """Sees also which calls of the loop no plugin hears of, surrounds or replaces."""
        super()._look(ctx, spans)
        if is_replaced(ctx.bus, "optimizer_step"):
            self._update_at = -1
        for span in _CALLS:
            is_free = not spans.is_heard(span) and not is_replaced(ctx.bus, span)
            self._free_at[span] = ctx.bus.freezes if is_free else -1

    def _hears(self, span: str) -> bool:
        """Whether any plugin hears of a call, surrounds or replaces it, as the bus is now."""
        self._look_again(*self.running())
        return self._free_at[span] != self.bus.freezes

    def settle(self) -> None:
        """Ends the step where ``step`` is behind it: the loop saves before it asks for a batch."""
        _, spans = self.running()
        if next(reversed(spans.opened), "") == "run_step":
            self.end_step()

    # ---- the rest -----------------------------------------------------------------------------

    def validation(self) -> _Validation:
        """A context for the loop's own validation; ``.publish(metrics)`` in it."""
        return _Validation(self)

    def save(self, folder: str | Path, reason: str = "asked for by the loop") -> bool:
        """``accelerator.save_state(folder)``, unless a plugin vetoes it.

        Returns:
            Whether it was saved.
        """
        ctx, _ = self.running()
        vetoes = ctx.emit.veto_checkpoint and ctx.emit.veto_checkpoint(ctx, reason)
        if vetoes:
            return False
        self.accelerator.save_state(str(folder))
        self.checkpoint_saved(folder)
        return True

    def _save_in(self, folder: Path) -> Callable[[str], bool]:
        def save(reason: str) -> bool:
            ctx, _ = self.running()
            return self.save(folder / f"step-{ctx.position.global_step}", reason)

        return save

    def _serve(self) -> None:
        if self.is_asked:
            self.serve({"stop epoch": self._stop("epoch"), "stop run": self._stop("run")})

    def _stop(self, what: str) -> Callable[[str], None]:
        def stop(_: str) -> None:
            self._stopped = "run" if self._stopped == "run" else what

        return stop


class _Validation:
    """What ``AccelerateHost.validation`` gives."""

    def __init__(self, host: AccelerateHost) -> None:
        self._host = host
        self._metrics: dict[str, Any] = {}

    def publish(self, metrics: Mapping[str, Any]) -> None:
        """Publishes numbers when the validation is over."""
        self._metrics.update(metrics)

    def __enter__(self) -> _Validation:
        self._host.begin_validation()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            self._host.end_validation(self._metrics)


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None
