"""What plugins may call in a foreign loop, and where the calls of its model are heard."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from hatbus import BatchProcessor, hookimpl
from hatbus.loop import structure_watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from hatbus import Context
    from hatbus_hosts.host import Host


class Work(BatchProcessor):
    """Does what a plugin asks of the bus outside the host's own steps, such as a forward pass.

    Args:
        host: which knows how its batches go into a model.
        loss: as for ``BatchProcessor``.
    """

    def __init__(self, host: Host, loss: Any = None) -> None:
        super().__init__(loss)
        self._host = host

    @hookimpl(trylast=True)
    def forward(self, ctx: Context) -> Any:
        """The model's outputs for ``ctx.batch``."""
        return self._host.call_model(ctx)


def call_model(ctx: Context) -> Any:
    """``model(**batch)`` of a mapping, ``model(batch[0])`` of a pair, else ``model(batch)``."""
    batch, model = ctx.batch, ctx.wrapped_model
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


def may_skip_update(optimizer: Any) -> bool:
    """Whether an optimizer may leave an update out: Accelerate's do so only with a loss scaler."""
    from accelerate.optimizer import AcceleratedOptimizer

    return type(optimizer) is not AcceleratedOptimizer or optimizer.scaler is not None


def named_losses(outputs: Any) -> dict[str, torch.Tensor]:
    """The loss in a model's outputs, under the name ``loss``; empty where there is none.

    Args:
        outputs: of a model, or of an engine of Ignite, which may be the loss as a plain number.
    """
    if isinstance(outputs, float):
        return {"loss": torch.tensor(outputs)}
    if isinstance(outputs, torch.Tensor):
        return {} if outputs.ndim else {"loss": outputs}
    if isinstance(outputs, (dict, Mapping)):  # a dict is found out sooner
        found = outputs.get("loss")
    else:
        found = outputs[0] if isinstance(outputs, (tuple, list)) and outputs else None
    if isinstance(found, float):
        return {"loss": torch.tensor(found)}
    return {"loss": found} if isinstance(found, torch.Tensor) and not found.ndim else {}


def more_losses(
    step: dict[str, torch.Tensor] | None, batch: dict[str, torch.Tensor], weight: float
) -> dict[str, torch.Tensor]:
    """The losses of a step with one more batch's.

    Args:
        step: name to 0-d loss; None: of no batch yet.
        batch: the same, of one batch.
        weight: the batch's share.

    Returns:
        The batch's own where it is all of the step.
    """
    if weight == 1.0 and not step:
        return batch
    found = dict(step or {})
    for name, loss in batch.items():
        share = loss.detach() * weight
        found[name] = found[name] + share if name in found else share
    return found


class Heard:
    """Hooks of torch's on a model, a loss and an optimizer, until ``remove``."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._handles: list[Any] = []
        self._on_model: list[Any] = []
        self._watching = ExitStack()

    def model(
        self,
        model: torch.nn.Module,
        begin: Callable[[tuple[Any, ...], dict[str, Any]], bool],
        end: Callable[[Any], Any],
    ) -> None:
        """Makes every call of a model a forward pass of the present batch.

        Args:
            model: whose ``forward`` is meant.
            begin: given a call's arguments, says whether it is one of the training's.
            end: given the outputs of such a call, gives those to go on with.
        """
        self.nothing()
        host: Host = self._host
        inside: list[bool] = []

        def before(_: torch.nn.Module, args: Any, kwargs: Any) -> None:
            if inside and not host.is_in_forward():
                inside.clear()  # a call before this one failed, and somebody caught that
            is_meant = not inside and not host.is_updating and begin(args, kwargs)
            inside.append(is_meant)
            if is_meant:
                host.begin_forward()

        def after(_: torch.nn.Module, _args: Any, outputs: Any) -> Any:
            if inside and inside.pop():
                return end(outputs)
            return outputs

        self._on_model += [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after),
        ]

    def outputs(self, model: torch.nn.Module) -> None:
        """Only keeps what a model returned for the present batch: nobody hears forward passes."""
        self.nothing()
        host, (ctx, spans) = self._host, self._host.running()
        opened = spans.opened

        def after(_: torch.nn.Module, _args: Any, outputs: Any) -> None:
            if "run_batch" in opened and "validate" not in opened and not host.is_updating:
                ctx.model_outs = outputs

        self._on_model.append(model.register_forward_hook(after))

    def nothing(self) -> None:
        """Does not hear a model any more."""
        handles, self._on_model = self._on_model, []
        for handle in handles:
            handle.remove()

    def loss(self, loss: torch.nn.Module) -> None:
        """Takes what a loss module returns as the present batch's loss."""
        (ctx, spans), is_training = self._host.running(), torch.is_grad_enabled
        opened = spans.opened

        def after(_: torch.nn.Module, _args: Any, value: Any) -> None:
            if "run_loop" in opened and is_training():
                is_one = isinstance(value, torch.Tensor) and not value.ndim
                ctx.losses = {"loss": value} if is_one else named_losses(value)

        self._handles.append(loss.register_forward_hook(after))

    def optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        before: Callable[..., None] | None,
        after: Callable[..., None],
    ) -> None:
        """Calls something before and after every update, as hooks of optimizers are called."""
        if before is not None:
            self._handles.append(optimizer.register_step_pre_hook(before))
        self._handles.append(optimizer.register_step_post_hook(after))

    def structure(self, ctx: Context) -> None:
        """Counts changes of the model's structure, which plugins ask for (``structure_of``)."""
        self._watching.enter_context(structure_watched(ctx))

    def remove(self) -> None:
        """Takes all hooks off."""
        self._watching.close()
        self.nothing()
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()
