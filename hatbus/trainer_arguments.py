"""Checks of what a trainer is made of, before anything is built of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from typing import TYPE_CHECKING, Any, Final

import torch

from hatbus.batches.batch_processor import BatchProcessor
from hatbus.bus.member import is_core
from hatbus.errors import JobError, did_you_mean
from hatbus.option_values import seconds, whole
from hatbus.runs.folders import NEW

if TYPE_CHECKING:
    from hatbus.bus.bus import Bus

_OPTIMIZER: Final = ("step", "zero_grad", "param_groups")
"""What makes an optimizer, be it torch's or one that wraps torch's."""
NOBODY_LOADS: Final = (
    "no plugin of this run loads checkpoints; add the plugin 'checkpoint' (in a job -p checkpoint, "
    "in Python Checkpoint(...)), or leave resume out"
)


def check_arguments(model: Any, optimizer: Any, loss: Any, batch_processor: Any) -> None:
    """Refuses what cannot be trained.

    Raises:
        JobError: what was given, and what is accepted.
    """
    if loss is not None and batch_processor is not None:
        raise JobError("give loss= or batch_processor=, not both: the processor has the loss")
    if not isinstance(model, torch.nn.Module):
        _refuse("model", model, "a torch.nn.Module")
    if not all(hasattr(optimizer, part) for part in _OPTIMIZER):
        _refuse_optimizer(optimizer)
    losses = loss.items() if isinstance(loss, Mapping) else [("", loss)]
    for task, one in losses:
        if (not callable(one) or isinstance(one, type)) and (task or one is not None):
            name = f"loss of task {task!r}" if task else "loss"
            _refuse(name, one, "loss(model_outs, target), as torch.nn.functional.mse_loss; or None")
    if batch_processor is None or type(batch_processor) is BatchProcessor:
        _check_overlap(model, optimizer.param_groups)


def check_losses(processor: BatchProcessor, tasks: Sequence[str], bus: Bus) -> None:
    """Refuses losses per task of which one task has none, unless somebody else reckons them.

    Raises:
        JobError: the task, and the closest name that has a loss.
    """
    losses: Any = processor.loss if type(processor) is BatchProcessor else None
    if not isinstance(losses, Mapping):
        return
    spans = ("run_batch", "compute_loss")
    own = (i for span in spans for i in bus.implementations(span) if not i.wrapper)
    if any(not is_core(i.plugin_name) for i in own):
        return
    for task in tasks:
        if task not in losses:
            raise JobError(f"no loss for task {task!r}{did_you_mean(task, losses)}")


def check_plan(num_epochs: Any, num_steps: Any) -> None:
    """Refuses what is no plan of a run.

    Raises:
        JobError: not exactly one of the two, or one that is no whole number of at least 1.
    """
    if (num_epochs is None) == (num_steps is None):
        raise JobError("give num_epochs= or num_steps=, one of the two")
    for name, value in (("num_epochs", num_epochs), ("num_steps", num_steps)):
        if value is None:
            continue
        try:
            is_plan = index(value) >= 1
        except TypeError:
            is_plan = False
        if not is_plan:
            is_data = hasattr(value, "__iter__") and not isinstance(value, str)
            hint = "; data is given to Trainer()" if is_data else ""
            _refuse(name, value, f"a whole number of at least 1{hint}")


def check_resume(wanted: Any, bus: Bus) -> None:
    """Refuses a run that is to go on from a checkpoint that nobody in it can load.

    Raises:
        JobError: what was asked for, and what to add.
    """
    loads = (one.plugin_name for one in bus.implementations("load_checkpoint") if not one.wrapper)
    if wanted not in (None, NEW) and all(map(is_core, loads)):
        raise JobError(f"resume is {str(wanted)!r}, and {NOBODY_LOADS}")


def check_limits(
    limit_steps: Any = None, max_time: Any = None, sanity_steps: Any = 0
) -> float | None:
    """Refuses what is no limit.

    Returns:
        The limit of time in seconds, if there is one.

    Raises:
        JobError: what was given, and what is accepted.
    """
    if limit_steps is not None:
        whole("limit_steps", limit_steps, 1)
    whole("sanity_steps", sanity_steps, 0)
    return None if max_time is None else seconds("max_time", max_time)


def check_closure(optimizer: Any, bus: Bus) -> None:
    """Refuses an optimizer that evaluates the loss itself, where nobody gives it a closure.

    Raises:
        JobError: it does, and no plugin makes the update.
    """
    try:
        first = next(iter(inspect.signature(optimizer.step).parameters.values()), None)
    except (ValueError, TypeError):
        return
    if first is None or first.name != "closure" or first.default is not first.empty:
        return
    makers = [one for one in bus.implementations("optimizer_step") if not one.wrapper]
    if all(one.plugin_name.startswith("core.") for one in makers):
        raise JobError(
            f"optimizer {type(optimizer).__name__} wants a closure that evaluates the loss anew, "
            "and the loop's update has none; add the plugin closure (distribution hatbus-grad): "
            "-p closure, in Python plugins=[Closure()]"
        )


def _check_overlap(model: torch.nn.Module, groups: Iterable[Mapping[str, Any]]) -> None:
    """Refuses an optimizer that holds nothing of a model in which there is something to train.

    One parameter in common is enough: a plugin may add others later. A batch processor of the
    user's own may train what is not in the model.
    """
    trained = {id(one) for group in groups for one in group["params"]}
    trainable = [one for one in model.parameters() if one.requires_grad]
    if trainable and trained.isdisjoint(map(id, trainable)):
        raise JobError(
            f"optimizer holds none of the model's {len(trainable)} trainable parameters, so "
            "nothing of it would be trained; make it of the model's own, after the last change "
            "that makes new ones (sharding, a new head); or freeze the model: "
            "model.requires_grad_(False)"
        )


def _refuse_optimizer(given: Any) -> None:
    """Says what an optimizer is.

    Raises:
        JobError: always.
    """
    accepted = "one instance, as torch.optim.SGD(model.parameters())"
    if isinstance(given, (list, tuple, Mapping)):
        raise JobError(
            f"optimizer is a {type(given).__name__} of {len(given)}; accepted: {accepted}, of "
            "which each param group may have a learning rate of its own; or an object of your own "
            f"around several, with {', '.join(_OPTIMIZER)}"
        )
    if isinstance(given, torch.optim.lr_scheduler.LRScheduler):
        accepted += "; the scheduler is a plugin, TorchLr"
    _refuse("optimizer", given, accepted)


def _refuse(name: str, value: Any, accepted: str) -> None:
    shown = " ".join(f"{value!r:.80}".split())
    what = f"the class {value.__name__}" if isinstance(value, type) else shown
    raise JobError(f"{name} is {what}; accepted: {accepted}")
