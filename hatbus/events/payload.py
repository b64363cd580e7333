"""The arguments that events carry: one name, one type and one meaning for each, everywhere."""

from __future__ import annotations

from typing import Final, NamedTuple

ARGUMENTS: Final[dict[str, tuple[str, str]]] = {
    "ctx": ("Context", "the run itself: requests, log, weights, progress, rank"),
    "model": ("torch.nn.Module", "the raw model, never a DDP or torch.compile wrapper"),
    "optimizer": ("torch.optim.Optimizer | None", "None in a validation run"),
    "data_loader": ("Iterable | dict[str, Iterable]", "what the user gave as data"),
    "device": ("torch.device", "where the model and the batches are"),
    "num_epochs": ("int | None", "planned epochs; None when the run is planned in steps"),
    "num_steps": ("int | None", "planned steps; None when the run is planned in epochs"),
    "epoch_id": ("int", "epoch, from 0"),
    "step_id": ("int", "step inside the epoch, from 0"),
    "global_step_id": ("int", "step inside the run, from 0"),
    "train_metrics": ("Sequence", "the metrics given to the trainer for training"),
    "val_metrics": ("Sequence", "the metrics given to the trainer for validation"),
    "loop": ("Context", "the run, under HAT's name for it: the same as ctx"),
    "storage": ("dict[str, Any]", "ctx.storage: where plugins leave things for one another"),
    "grad_scaler": ("torch.amp.GradScaler | None", "of fp16; None in another precision"),
    "ema_model": (
        "torch.nn.Module | None",
        "a copy of the model with the averages, made when it is asked for; None without ema",
    ),
    "losses": (
        "dict[str, Tensor]",
        "name to 0-d loss (`.item()` or `.detach()` it); at step end of tasks 'task/name'",
    ),
    "task": ("str | None", "the task of the batch; None in a run without tasks"),
    "batch": ("Any", "what the loader gave, on the device"),
    "model_outs": ("Any", "what the model returned; None before forward"),
    "samples": (
        "list[int] | None",
        "places of the batch's samples in the data set; None where nobody can know",
    ),
    "reason": ("str", "why it was asked for"),
    "path": ("pathlib.Path", "folder of the checkpoint"),
    "logs": ("dict[str, Any]", "name to published value"),
    "kind": ("str", "'scalar', 'image', 'histogram' or 'text'"),
    "exception": ("BaseException", "what ended the run"),
}
"""Argument name to (type, meaning)."""


ON_REQUEST: Final = frozenset({"loop", "storage", "grad_scaler", "ema_model"})
"""Arguments that an implementation gets if it names them, and not in ``**kwargs``."""


class Deprecated(NamedTuple):
    """An argument that will go.

    Attributes:
        since: version of hatbus that says so first.
        use: what to use in its place.
        until: version that will not give it any more.
    """

    since: str
    use: str
    until: str


DEPRECATED: Final[dict[str, Deprecated]] = {}
"""Arguments that are still given: a plugin that names one works, and is warned once."""

LOOP: Final = tuple(ARGUMENTS)[: tuple(ARGUMENTS).index("losses")]
"""Arguments that every event carries."""
STEP: Final = (*LOOP, "losses")
"""Arguments of events around a step."""
BATCH: Final = (*STEP, "task", "batch", "model_outs")
"""Arguments of events around one batch of one task."""
