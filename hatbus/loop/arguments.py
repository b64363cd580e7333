"""Checks of what a trainer is made of, before anything is built of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch

from hatbus.batches.batch_processor import BatchProcessor
from hatbus.errors import JobError

_OPTIMIZER: Final = ("step", "zero_grad", "param_groups")
"""What makes an optimizer, be it torch's or one that wraps torch's."""


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
        _refuse("optimizer", optimizer, "an instance, as torch.optim.SGD(model.parameters())")
    losses = loss.items() if isinstance(loss, Mapping) else [("", loss)]
    for task, one in losses:
        if (not callable(one) or isinstance(one, type)) and (task or one is not None):
            name = f"loss of task {task!r}" if task else "loss"
            _refuse(name, one, "loss(model_outs, target), as torch.nn.functional.mse_loss; or None")
    if batch_processor is None or type(batch_processor) is BatchProcessor:
        _check_overlap(model, optimizer.param_groups)


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


def _refuse(name: str, value: Any, accepted: str) -> None:
    what = f"the class {value.__name__}" if isinstance(value, type) else f"{value!r:.80}"
    raise JobError(f"{name} is {what}; accepted: {accepted}")
