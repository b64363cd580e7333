"""``GradScale``: gradients multiplied per module and task.

Only the gradients of one task's own backward may be scaled, while a parameter's ``grad`` adds up
those of all tasks and micro-batches of the step. Two ways, without a copy of anything:

* In one process, what a matched parameter holds already is set aside before the backward (the
  tensor itself, not a copy), so that the backward leaves this task's gradient alone; then
  ``before += scale * gradient`` in one pass. Autograd would have made the same addition.
* Under DDP the last backward of a step also reduces what earlier ones left on this rank, so
  nothing may be set aside, and nothing may be scaled once it has been reduced. There the gradient
  is scaled by a hook on the parameter, before it is added and before DDP sees it: what is reduced
  is right on every rank, and all ranks end with the same bits.

Shards (FSDP2) have no gradient before it is exchanged, so there it is after every batch, and then
as in one process.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hatbus import hookimpl, plugin
from hatbus.events import redeclare
from hatbus.log import log
from hatbus.loop import has_module, structure_of
from hatbus.parallel import is_shard, reshard, share_each_batch
from hatbus_grad.clipping import check_limit, check_norm_type, clip_norm
from hatbus_grad.rules import Group, check_tasks, groups_of, read_rules

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from hatbus.loop import Context

Gradients = list[torch.Tensor | None]


def set_aside(group: Group) -> Gradients:
    """Takes the gradients off the group's parameters; None where there was none."""
    before: Gradients = [p.grad for p in group.parameters]
    for parameter, gradient in zip(group.parameters, before, strict=True):
        if gradient is not None:
            parameter.grad = None
    return before


def add_scaled(group: Group, before: Gradients) -> None:
    """Makes every gradient ``before + scale * gradient``, in place of what is there."""
    fresh: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []
    added: list[torch.Tensor] = []
    for parameter, held in zip(group.parameters, before, strict=True):
        gradient = parameter.grad
        if held is not None:
            parameter.grad = held
            if gradient is not None:
                sums.append(held)
                added.append(gradient)
        elif gradient is not None:
            fresh.append(gradient)
    if fresh:
        torch._foreach_mul_(fresh, group.scale)
    if sums:
        torch._foreach_add_(sums, added, alpha=group.scale)


@plugin(stage="train")
class GradScale:
    """Scales gradients per module and task; a cheaper lever than the weights of the losses.

    A rule matches the parameters of its module and of everything below it. Rules that match the
    same parameter multiply. With ``clip_grad_norm`` it also owns ``grad.clip``: a second plugin
    that clips is refused at start. Source: ``hat.callbacks.GradScale``.

    Args:
        module_and_scale: ``(module, scale)`` or ``(module, scale, task)`` rules; a module's name
            stands for everything below it, and rules on one parameter multiply.
        clip_grad_norm: greatest total norm of the step's scaled gradients; None: no clipping.
        clip_norm_type: order of that norm.

    Raises:
        JobError: a rule or value that cannot be used; at loop begin, an unknown module or task.
    """

    def __init__(
        self,
        module_and_scale: list[Any],
        clip_grad_norm: float | None = None,
        clip_norm_type: float | None = 2,
    ) -> None:
        self.rules = read_rules(module_and_scale)
        self.clip_grad_norm = check_limit("grad_scale", "clip_grad_norm", clip_grad_norm)
        order = 2.0 if clip_norm_type is None else clip_norm_type
        self.clip_norm_type = check_norm_type("grad_scale", "clip_norm_type", order)
        if clip_grad_norm is not None:  # only then is there something to own
            redeclare(self, writes="grad.clip")
        self._structure, self._rules = -1, self.rules
        self._tasks: dict[str | None, tuple[Group, ...]] = {}
        self._before: list[Gradients] = []
        self._hooks: list[Any] = []

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Looks up modules and tasks."""
        check_tasks(self.rules, getattr(ctx.data, "tasks", ()))
        self._rules = self.rules
        self._look_up(ctx)
        if any(self._tasks.values()):
            share_each_batch(ctx)

    @hookimpl
    def on_backward_begin(self, ctx: Context) -> None:
        """Makes ready for this task's gradients."""
        if self._structure != structure_of(ctx):  # parameters were replaced
            self._leave_out(ctx)
            self._look_up(ctx)
        groups = self._tasks.get(ctx.task)
        if not groups:
            return
        if isinstance(ctx.wrapped_model, torch.nn.parallel.DistributedDataParallel):
            self._hooks = _hook(groups)
        else:
            self._before = [set_aside(group) for group in groups]

    @hookimpl
    def on_backward_end(
        self,
        model: torch.nn.Module,
        batch: Any = None,
        optimizer: Any = None,
        ctx: Context | None = None,
        task: str | None = None,
        **_more: Any,
    ) -> None:
        """Scales this task's gradients, and adds them to the ones from before.

        Outside a run, without ``ctx``: scales the gradients that the model has.
        """
        if ctx is None:
            for group in groups_of(model, self.rules, task):
                held = [p.grad for p in group.parameters if p.grad is not None]
                torch._foreach_mul_(held, group.scale)
            return
        for hook in self._hooks:
            hook.remove()
        for group, before in zip(self._tasks.get(ctx.task, ()), self._before, strict=False):
            add_scaled(group, before)
        self._hooks, self._before = [], []

    @hookimpl(wrapper=True)
    def clip_gradients(
        self, ctx: Context, optimizer: torch.optim.Optimizer
    ) -> Generator[None, bool, bool]:
        """Clips the scaled gradients, if asked to."""
        clipped = yield
        if self.clip_grad_norm is None:
            return clipped
        norm = clip_norm(optimizer, self.clip_grad_norm, self.clip_norm_type)
        ctx.grad_norm = None if is_shard(norm) else norm
        return True

    def _leave_out(self, ctx: Context) -> None:
        """Leaves out the rules for modules that are not there any more."""
        left = [rule for rule in self._rules if has_module(ctx.all_modules, rule.module)]
        for name in {rule.module: None for rule in self._rules if rule not in left}:
            log.warning("grad_scale: the model has no %r any more; its rule is left out", name)
        self._rules = left

    def _look_up(self, ctx: Context) -> None:
        reshard(ctx.model)  # a forward pass leaves whole parameters in the places of shards
        tasks: Sequence[str] = getattr(ctx.data, "tasks", ())
        self._tasks = {t: groups_of(ctx.all_modules, self._rules, t) for t in tasks or (None,)}
        self._structure = structure_of(ctx)


def _hook(groups: Sequence[Group]) -> list[Any]:
    """Hooks that scale each parameter's gradient before it is added; DDP reduces afterwards."""
    wanted = [(p, g.scale) for g in groups for p in g.parameters if p.requires_grad]
    return [
        parameter.register_hook(partial(torch.mul, other=scale))  # type: ignore[no-untyped-call]  # torch's
        for parameter, scale in wanted
    ]
