"""Optimizers that train other weights than they are to be judged by: schedule-free ones.

Such an optimizer has ``train()`` and ``eval()``. In train mode the model holds the weights at which
gradients are taken (``y`` in the paper), in eval mode the average that is the result (``x``), and
``step()`` is refused there. Source: Defazio et al., The Road Less Scheduled, arXiv 2405.15682.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.events.declare import hookimpl
from hatbus.loop.module_names import plain_name
from hatbus.parallel.sharding import local_tensor, reshard

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from torch import Tensor

    from hatbus.loop.context import Context

SCHEDULE_FREE: Final = "schedule_free"
"""The weight view of what the optimizer's ``eval()`` shows."""


def has_modes(optimizer: Any) -> bool:
    """Whether an optimizer wants ``train()`` and ``eval()`` called around what is done with it."""
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


class ScheduleFree:
    """Puts the optimizer in train mode for steps, and in eval mode for everything else.

    Validation, export and checkpoints see what ``eval()`` shows, and so does whoever uses the model
    after the run. ``eval()`` and ``train()`` round differently, so the weights that are trained are
    kept meanwhile and put back as they were; a checkpoint holds them as this part's state.
    """

    def __init__(self) -> None:
        self._is_fitting, self._shown = False, 0
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._names: dict[int, str] = {}
        self._saved: dict[str, Tensor] = {}

    @hookimpl(wrapper=True, tryfirst=True)
    def run_loop(self, ctx: Context) -> Generator[None, Any, Any]:
        """Train mode while the loop is on, eval mode after it."""
        self._go_on(ctx)
        self._is_fitting, self._saved = True, {}
        try:
            result = yield
        except BaseException:
            with suppress(Exception):  # what ends the run is to be told, nothing that follows
                self._leave(ctx)
            raise
        self._leave(ctx)
        return result

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Offers the view."""
        ctx.weights.add(SCHEDULE_FREE, self._view_of(ctx))

    @hookimpl(specname="on_loop_begin", trylast=True)
    def begin_training(self, ctx: Context) -> None:
        """Train mode, whatever was loaded since."""
        self._train(ctx)

    @hookimpl(trylast=True)
    def on_epoch_begin(self, ctx: Context) -> None:
        """Train mode for an optimizer that a plugin has put in the other's place."""
        self._train(ctx)

    @hookimpl(wrapper=True, tryfirst=True)
    def load_checkpoint(self, ctx: Context) -> Generator[None, Any, Any]:
        """Puts the trained weights where the checkpoint's are."""
        loaded = yield
        if loaded is not False and self._is_fitting:
            self._give_back(ctx)
        return loaded

    @hookimpl(wrapper=True, tryfirst=True)
    def save_checkpoint(self, ctx: Context) -> Generator[None, Any, Any]:
        """Saves in eval mode, as the authors ask for."""
        with self._showing(ctx):
            return (yield)

    @hookimpl(wrapper=True, tryfirst=True)
    def validate(self, ctx: Context) -> Generator[None, Any, Any]:
        """Validates in eval mode."""
        with self._showing(ctx):
            return (yield)

    @hookimpl(wrapper=True, tryfirst=True)
    def export_model(self, ctx: Context) -> Generator[None, Any, Any]:
        """Exports in eval mode."""
        with self._showing(ctx):
            return (yield)

    def state_dict(self) -> dict[str, Any]:
        """The weights that are trained, by parameter name, while others are shown."""
        return {"trained": {self._names[id(one)]: kept for one, kept in self._kept}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them; the model and the optimizer get theirs after this."""
        self._saved = dict(state["trained"])

    def _view_of(self, ctx: Context) -> Any:
        def view() -> AbstractContextManager[None]:
            return self._showing(ctx)

        return view

    def _showing(self, ctx: Context) -> AbstractContextManager[None]:
        """Eval mode inside this context; outside of a fit the optimizer is in it already."""
        return self._in_eval_mode(ctx) if self._is_fitting else nullcontext()

    def _train(self, ctx: Context) -> None:
        optimizer: Any = ctx.optimizer
        if self._is_fitting and has_modes(optimizer):
            optimizer.train()

    def _leave(self, ctx: Context) -> None:
        self._is_fitting = False
        self._show(ctx)

    @contextmanager
    def _in_eval_mode(self, ctx: Context) -> Iterator[None]:
        self._shown += 1
        if self._shown == 1:
            self._show(ctx)
        try:
            yield
        finally:
            self._shown -= 1
            if self._shown == 0:
                self._hide(ctx)

    @torch.no_grad()
    def _show(self, ctx: Context) -> None:
        """Eval mode; keeps what was trained, where that is something else."""
        optimizer: Any = ctx.optimizer
        if not has_modes(optimizer) or not has_state(optimizer):
            return  # before the first update both are the same, and some cannot tell yet
        self._names = names_of(ctx)
        trained = trained_by(optimizer)
        kept = [local_tensor(one).clone() for one in trained]
        optimizer.eval()
        is_same = all(local_tensor(one).equal(y) for one, y in zip(trained, kept, strict=True))
        self._kept = [] if is_same else list(zip(trained, kept, strict=True))
        reshard(ctx.model)

    @torch.no_grad()
    def _hide(self, ctx: Context) -> None:
        """Train mode, with the very weights that were trained before."""
        optimizer: Any = ctx.optimizer
        if has_modes(optimizer):
            optimizer.train()
        put_back(self._kept)
        self._kept = []
        reshard(ctx.model)

    @torch.no_grad()
    def _go_on(self, ctx: Context) -> None:
        """Train mode at the beginning: exactly where the last fit ended, if nobody changed that."""
        optimizer: Any = ctx.optimizer
        now = [(one, local_tensor(one).clone()) for one in trained_by(optimizer)]
        if has_modes(optimizer) and self._is_of(now):
            optimizer.train()
            put_back(self._kept)
            optimizer.eval()
            if all(local_tensor(one).equal(x) for one, x in now):
                self._hide(ctx)
                return
            put_back(now)
        self._kept = []
        self._hide(ctx)

    def _is_of(self, now: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether what was kept is of these parameters."""
        return bool(self._kept) and [id(p) for p, _ in self._kept] == [id(p) for p, _ in now]

    @torch.no_grad()
    def _give_back(self, ctx: Context) -> None:
        optimizer: Any = ctx.optimizer
        if not has_modes(optimizer):
            return
        optimizer.train()
        if has_state(optimizer):  # else it begins anew, with the weights that it is given
            names = names_of(ctx)
            every = [(one, self._saved.get(names[id(one)])) for one in trained_by(optimizer)]
            put_back([(one, y) for one, y in every if y is not None])
        self._saved = {}
        reshard(ctx.model)


def has_state(optimizer: Any) -> bool:
    """Whether an optimizer has made an update; one that does not show its state may have."""
    return any(getattr(optimizer, "state", {"unknown": True}).values())


def trained_by(optimizer: Any) -> list[Tensor]:
    """The parameters that an optimizer can change."""
    every = (one for group in optimizer.param_groups for one in group["params"])
    return [one for one in every if one.requires_grad]


def names_of(ctx: Context) -> dict[int, str]:
    """The names of the optimizer's parameters by id; ``#3`` for the third if it is none of them."""
    groups: Any = ctx.optimizer.param_groups  # type: ignore[union-attr]  # it has modes
    every = (one for group in groups for one in group["params"])
    numbered = {id(one): f"#{number}" for number, one in enumerate(every)}
    named = {id(one): plain_name(name) for name, one in ctx.all_modules.named_parameters()}
    return numbered | named


def put_back(kept: list[tuple[Tensor, Tensor]]) -> None:
    """Copies values into parameters, of shards the part on this process."""
    for parameter, value in kept:
        local_tensor(parameter).copy_(value)
