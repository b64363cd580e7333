"""Gradients of the model, exchanged once per step: torch's DDP, and that of shards (FSDP2)."""

from __future__ import annotations

import gc
import operator
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from hatbus.errors import JobError
from hatbus.events.declare import hookimpl
from hatbus.loop.structure import structure_of
from hatbus.parallel.agreed import AgreedControl
from hatbus.parallel.launch import rank_and_world
from hatbus.parallel.modes.buffers import send_at_once
from hatbus.parallel.modes.options import Parallel
from hatbus.parallel.modes.riding import Riding, carrier_in
from hatbus.parallel.sharding import is_sharded, reshard, sharded_roots

if TYPE_CHECKING:
    from collections.abc import Generator

    from hatbus.loop.context import Context

PARALLEL: Final = "parallel"
"""Where in a context's storage the run's ``Parallel`` is; None: nobody said anything."""
EACH_BATCH: Final = "parallel.each_batch"
"""Where it says that shards get their gradients after every batch of a step."""
_exchanged: Final[WeakKeyDictionary[Any, list[torch.nn.Parameter]]] = WeakKeyDictionary()
"""What the wrappers reduce: torch finds that out once, when a wrapper is made."""
_carriers: Final[WeakKeyDictionary[Any, Riding | None]] = WeakKeyDictionary()
"""What travels with the gradients of the wrappers that were asked."""
_UNFINISHED: Final = "Expected to have finished reduction in the prior iteration"
_INDICES: Final = re.compile(r"did not receive grad for rank \d+: ([\d ]+)")
_OF_SHARDS: Final = re.compile(r"DTensor|[Ss]harding|placement|redistribut")
_SHOWN: Final = 5


def plan_of(ctx: Context) -> Parallel | None:
    """What ``parallel`` says; None: nothing."""
    found: Parallel | None = ctx.storage.get(PARALLEL)
    return found


def share_each_batch(ctx: Context) -> None:
    """Lets shards (FSDP2) get their gradients after every batch, not once per step.

    For a plugin that needs those of each batch, called at loop begin by every process. Costs an
    exchange per batch; DDP goes on with one per step.
    """
    ctx.storage[EACH_BATCH] = True


def wrapped(ctx: Context, model: torch.nn.Module) -> Any:
    """The model, or its compiled form, as it exchanges gradients by the run's ``parallel``."""
    many_tasks = len(getattr(ctx.data, "tasks", ())) > 1
    return wrapped_in_ddp(model, ctx.device, many_tasks=many_tasks, plan=plan_of(ctx))


def wrapped_in_ddp(
    model: torch.nn.Module,
    device: torch.device,
    *,
    many_tasks: bool,
    plan: Parallel | None = None,
) -> Any:
    """The model as its DDP wrapper when there are several processes.

    A model whose parameters are sharded already (``fully_shard``, FSDP2) exchanges its own.

    Args:
        model: the raw model.
        device: of this process.
        many_tasks: whether a batch may leave parameters without a gradient.
        plan: options of mode ``"ddp"``.
    """
    if rank_and_world()[1] == 1 or is_sharded(model):
        return model
    if not any(p.requires_grad for p in model.parameters()):
        return model
    plan = plan or Parallel()
    find_unused = many_tasks if plan.find_unused is None else plan.find_unused
    wrapper = DistributedDataParallel(
        model,
        device_ids=[device.index or 0] if device.type == "cuda" else None,
        find_unused_parameters=find_unused and not plan.static_graph,
        static_graph=plan.static_graph,
        gradient_as_bucket_view=plan.bucket_views,
        process_group=_own_group(device),
    )
    if device.type == "cpu":
        send_at_once(wrapper)
    _exchanged[wrapper] = trained_in(model)
    return wrapper


def ride_along(ctx: Context) -> None:
    """Lets what processes ask for travel with the gradients of the model, if that can be.

    Before the first of them, and after the begin of the loop, where plugins give DDP other hooks.
    """
    wrapper, control = ctx.wrapped_model, ctx.control
    trained = _exchanged.get(wrapper)
    if trained is None or wrapper in _carriers or not isinstance(control, AgreedControl):
        return
    _carriers[wrapper] = carrier = carrier_in(wrapper, trained)
    is_alone = control.anywhere([carrier is None])[0]
    control.ride(None if is_alone else carrier)


def _own_group(device: torch.device) -> Any:
    """A group for gradients alone, so that a plugin's exchange never meets them in it.

    On the host. On GPUs it would be a second communicator with memory of its own: None.
    """
    return None if device.type == "cuda" else distributed.new_group(backend="gloo")


def trained_in(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters of a model that get gradients."""
    return [one for one in model.parameters() if one.requires_grad]


class ShareGradientsOnce:
    """Gradients are exchanged in the last backward of a step only.

    By DDP's ``no_sync``, and for shards by ``set_requires_gradient_sync``.
    """

    def __init__(self) -> None:
        self._begun, self._structure = 0, -1
        self._roots: list[Any] = []

    @hookimpl(wrapper=True, tryfirst=True)
    def run_step(self) -> Generator[None, Any, Any]:
        """Counts the batches of a step; two of them may be one object, or be replaced."""
        self._begun = 0
        return (yield)

    @hookimpl(wrapper=True, tryfirst=True)
    def run_batch(self, ctx: Context) -> Generator[None, Any, Any]:
        """Forward and backward of all but the last batch stay on this rank.

        Raises:
            JobError: DDP found parameters that no loss uses.
        """
        if not self._begun and self._structure != structure_of(ctx):
            self._follow(ctx)
        self._begun += 1
        is_last = self._begun >= len(ctx.batches)
        with _unused_named(ctx), self._apart(ctx, is_last=is_last):
            return (yield)

    @hookimpl(wrapper=True, tryfirst=True)
    def validate(self, ctx: Context) -> Generator[None, Any, Any]:
        """Puts shards back in the places of whole parameters, which a forward pass leaves there."""
        result = yield
        reshard(ctx.model)
        return result

    @hookimpl(wrapper=True, tryfirst=True)
    def optimizer_step(self, ctx: Context) -> Generator[None, Any, Any]:
        """Says in one line that an optimizer cannot update shards.

        Raises:
            JobError: it cannot.
        """
        try:
            return (yield)
        except (RuntimeError, NotImplementedError) as error:
            if not self._roots or not _OF_SHARDS.search(str(error)):
                raise
            raise JobError(
                f"optimizer {type(ctx.optimizer).__name__} cannot update a model in shards "
                f"({' '.join(str(error).split()):.120}...); choose another, or parallel = 'ddp'"
            ) from error

    @contextmanager
    def _apart(self, ctx: Context, *, is_last: bool) -> Iterator[None]:
        """Gradients of what is done in here stay on this process, unless it is the last batch."""
        shared: Any = ctx.wrapped_model
        if is_last:
            yield
        elif isinstance(shared, DistributedDataParallel):
            with shared.no_sync():
                yield
        elif self._roots and not ctx.storage.get(EACH_BATCH):
            for root in self._roots:
                root.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                for root in self._roots:
                    root.set_requires_gradient_sync(True)
        else:
            yield

    def _follow(self, ctx: Context) -> None:
        """Makes the DDP wrapper anew if it is not for the parameters that train now.

        The old one has to be gone first: its hooks on parameters that stay would reduce them twice.
        """
        self._structure = structure_of(ctx)
        self._roots = sharded_roots(ctx.model)
        inner: Any = ctx.wrapped_model
        known, now = _exchanged.get(inner), trained_in(ctx.model)
        is_new = known is None or len(known) != len(now) or not all(map(operator.is_, known, now))
        if is_new:
            inner = inner if known is None else inner.module
            ctx.wrapped_model = None
            gc.collect()
            ctx.wrapped_model = wrapped(ctx, inner)
        ride_along(ctx)


@contextmanager
def _unused_named(ctx: Context) -> Iterator[None]:
    """Says in one line what DDP says of parameters that got no gradient in the step before."""
    try:
        yield
    except RuntimeError as error:
        if _UNFINISHED not in str(error):
            raise
        raise JobError(
            f"{_unused(ctx, str(error))} got no gradient in step {ctx.global_step_id - 1}, which "
            "DDP waits for: let the loss use all of the model, freeze what it does not use "
            "(requires_grad_(False)), or set parallel = { mode = 'ddp', find_unused = true }, in "
            "Python parallel=Parallel(find_unused=True)"
        ) from error


def _unused(ctx: Context, said: str) -> str:
    """The parameters that torch numbers, by name."""
    found, known = _INDICES.search(said), _exchanged.get(ctx.wrapped_model, [])
    names = {id(one): name for name, one in ctx.model.named_parameters()}
    numbers = [int(n) for n in found[1].split()] if found else []
    unused = [names.get(id(known[n]), f"#{n}") for n in numbers if n < len(known)]
    more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
    return f"of the model {', '.join(map(repr, unused[:_SHOWN])) or 'a parameter'}{more}"
