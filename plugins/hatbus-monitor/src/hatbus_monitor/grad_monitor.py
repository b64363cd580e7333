"""``GradMonitor``: learning rates, and gradient and weight norms per module."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from hatbus import hookimpl, plugin
from hatbus.errors import JobError, PluginError, did_you_mean
from hatbus.option_values import is_number, names, whole
from hatbus.parallel import largest_magnitudes

if TYPE_CHECKING:
    from hatbus import Context

_TWO_IN_A_BYTE: Final = getattr(torch, "float4_e2m1fn_x2", None)


@plugin(stage="monitor", everywhere=True)
class GradMonitor:
    """Publishes learning rates and the norms of gradients per module, every few steps.

    Gradients are seen after the last backward of the step and before they are clipped, unscaled.
    Published: ``grad_norm`` (all), ``grad_norm/<module>``, ``weight_norm/<module>``,
    ``lr/<group>``. On steps in between nothing is computed; on a step that is
    due there is one transfer from the device.

    Args:
        log_freq: every so many steps.
        modules: names of modules (a name means what is below it, too); by default every child of
            the model.
        norm_type: 2.0, 1.0, ``inf``.
        weights: publish the norms of the weights, too.
        lr: publish the learning rates.

    Raises:
        JobError: a value that cannot be used.
        PluginError: at loop begin, an unknown module.
    """

    def __init__(
        self,
        log_freq: int = 50,
        modules: Sequence[str] | None = None,
        norm_type: float = 2.0,
        weights: bool = False,
        lr: bool = True,
    ) -> None:
        if not is_number(norm_type) or not norm_type > 0:
            raise JobError(
                f"grad_monitor: norm_type is {norm_type!r}; accepted: a number above 0, inf too"
            )
        whole("grad_monitor: log_freq", log_freq, 1)
        self.log_freq = log_freq
        self.modules = (modules,) if isinstance(modules, str) else modules
        if self.modules is not None:
            names("grad_monitor: modules", self.modules)
        self.norm_type, self.weights, self.lr = norm_type, weights, lr
        self._prefix = ""

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Checks the names of the modules."""
        parameters_of(ctx.all_modules, self.modules)
        self._prefix = ctx.bus.log_prefix(self)

    def published_names(self, ctx: Any) -> list[str]:
        """Norms of modules, which are known when the run has begun; learning rates."""
        return ["*grad_norm*", "*weight_norm*", "lr*"]

    @hookimpl(wrapper=True)
    def clip_gradients(self, ctx: Context) -> Generator[None, Any, Any]:
        """Measures before anybody clips."""
        if (ctx.global_step_id + 1) % self.log_freq == 0:
            # Found anew each time: other plugins may put other parameters in their place.
            groups = parameters_of(ctx.all_modules, self.modules)
            ctx.log(self._values(ctx, groups))
        return (yield)

    def _values(self, ctx: Context, groups: Mapping[str, list[nn.Parameter]]) -> dict[str, float]:
        every = [p for p in ctx.all_modules.parameters() if p.grad is not None]
        named: dict[str, Tensor] = {}
        each = each_norm([p.grad for p in every], self.norm_type)
        norms = dict(zip(map(id, every), each, strict=True))
        zero = torch.zeros((), device=ctx.device)
        named["grad_norm"] = joint_norm(list(norms.values()) or [zero], self.norm_type)
        for name, parameters in groups.items():
            found = [norms[id(p)] for p in parameters if id(p) in norms]
            named[f"grad_norm/{name}"] = joint_norm(found or [zero], self.norm_type)
            if self.weights:
                own = each_norm([p.detach() for p in parameters], self.norm_type)
                named[f"weight_norm/{name}"] = joint_norm(own or [zero], self.norm_type)
        row = torch.stack([norm.to(named["grad_norm"].device) for norm in named.values()])
        values = {f"{self._prefix}{n}": v for n, v in zip(named, row.tolist(), strict=True)}
        return {**values, **(learning_rates(ctx.optimizer) if self.lr and not self._prefix else {})}


def parameters_of(model: nn.Module, chosen: Sequence[str] | None) -> dict[str, list[nn.Parameter]]:
    """The parameters below each named module; without names, below each child of the model.

    Raises:
        PluginError: a name that the model does not have.
    """
    if chosen is None:
        found = {name: list(child.parameters()) for name, child in model.named_children()}
        return {name: parameters for name, parameters in found.items() if parameters}
    known = dict(model.named_modules())
    for name in chosen:
        if name not in known:
            raise PluginError(f"grad_monitor: no module {name!r}{did_you_mean(name, known)}")
    return {name: list(known[name].parameters()) for name in chosen}


def each_norm(tensors: Sequence[Tensor | None], norm_type: float) -> list[Tensor]:
    """The norm of every tensor, 0-d, computed together."""
    by_kind: dict[Any, list[int]] = defaultdict(list)
    given = [stored(tensor.detach()) for tensor in tensors if tensor is not None]
    if math.isinf(norm_type):
        return largest_magnitudes(given)
    for index, tensor in enumerate(given):
        by_kind[tensor.device, tensor.dtype].append(index)
    norms = given[:]
    for indices in by_kind.values():
        group = torch._foreach_norm([given[i] for i in indices], norm_type)  # noqa: SLF001 - torch's own optimizers and clip_grad_norm_ stand on it
        for index, norm in zip(indices, group, strict=True):
            norms[index] = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return norms


def stored(tensor: Tensor) -> Tensor:
    """What a sparse tensor stores, or a zero if that is nothing; a dense tensor as it is.

    Floats of one byte, with which torch hardly reckons, come in float32; of two in a byte, a zero.
    """
    if tensor.dtype is _TWO_IN_A_BYTE:
        return torch.zeros(1, device=tensor.device)
    if not tensor.is_sparse:
        is_small = tensor.is_floating_point() and tensor.element_size() == 1
        return tensor.float() if is_small else tensor
    values = tensor.coalesce().values()
    return values if values.numel() else values.new_zeros(1)


def joint_norm(norms: Sequence[Tensor], norm_type: float) -> Tensor:
    """The norm of all together, from the norms of the parts."""
    row = torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms])
    norm: Tensor = torch.linalg.vector_norm(row, norm_type)
    return norm


def learning_rates(optimizer: torch.optim.Optimizer | None) -> dict[str, float]:
    """``lr/<name or number of the group>``, as the learning rate plugins call it."""
    groups = [] if optimizer is None else optimizer.param_groups
    return {f"lr/{g.get('name', index)}": float(g["lr"]) for index, g in enumerate(groups)}
