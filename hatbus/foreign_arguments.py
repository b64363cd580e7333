"""What other trainers call the arguments of hatbus, so that a message can say what to do instead.

Sources: the arguments of Lightning 2's ``Trainer`` and ``fit``, of Transformers 4's ``Trainer`` and
``TrainingArguments``, of MMEngine 0.10's ``Runner`` and of Composer 0.30's ``Trainer``.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from hatbus.discovery.first_party import FIRST_PARTY
from hatbus.errors import JobError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")
ARGUMENTS: Final[dict[str, str]] = {
    "num_epochs": "max_epochs epochs max_epoch n_epochs nb_epochs num_train_epochs",
    "num_steps": "max_steps steps max_iters max_iter iterations num_iters total_steps",
    "data": "train_dataloader train_dataloaders train_loader dataloader dataloaders loader "
    "data_loader train_dataset train_data dataset",
    "loss": "criterion loss_fn loss_func loss_function",
    "optimizer": "optimizers optim",
    "plugins": "callbacks hooks custom_hooks",
    "device": "accelerator devices gpus num_gpus use_cuda",
    "accumulate": "accumulate_grad_batches gradient_accumulation_steps accumulation_steps",
    "precision": "amp fp16 bf16 mixed_precision",
    "run_dir": "default_root_dir output_dir work_dir log_dir save_dir",
}
"""Argument of ``Trainer`` or ``fit``, or key of ``[run]``, to other trainers' words for it."""
PLUGINS: Final[dict[str, str]] = {
    "validation": "val_dataloader val_dataloaders val_loader val_data eval_dataset eval_dataloader "
    "val_dataset valid_loader check_val_every_n_epoch",
    "torch_lr": "scheduler schedulers lr_scheduler lr_schedulers param_scheduler",
    "grad_clip": "gradient_clip_val max_grad_norm clip_grad clip_grad_norm",
    "checkpoint": "ckpt_path resume_from_checkpoint enable_checkpointing save_folder",
    "tensorboard": "logger loggers report_to",
    "metric_updater": "metrics compute_metrics",
    "progress": "enable_progress_bar progress_bar",
    "stats_monitor": "log_every_n_steps logging_steps log_interval",
}
"""Plugin to the arguments of other trainers that it is there for."""
PROCESSES: Final = "strategy num_nodes world_size num_processes local_rank"
_OF_FIT: Final = ("num_epochs", "num_steps")


def meaning(word: str) -> tuple[str, str]:
    """What another trainer's word means here: ``("argument" | "plugin" | "torchrun", name)``.

    Returns:
        Two empty texts where it is no such word.
    """
    for kind, table in (("argument", ARGUMENTS), ("plugin", PLUGINS)):
        for name, words in table.items():
            if word in words.split():
                return kind, name
    return ("torchrun", "") if word in PROCESSES.split() else ("", "")


def in_python(word: str, owner: str) -> str:
    """What to do instead of giving an argument to ``Trainer()`` or ``fit()``; empty: who knows."""
    kind, name = meaning(word)
    place = "fit()" if name in _OF_FIT else "Trainer()"
    if kind == "argument":
        return f"; give {name}=" + ("" if place == owner else f" to {place}")
    if kind == "plugin":
        return f"; add {FIRST_PARTY[name].class_name} of hatbus.callbacks to plugins="
    return "; start the processes with torchrun" if kind else ""


def in_job(word: str, known: tuple[str, ...]) -> str:
    """What to do instead of a key in ``[run]``; empty: who knows."""
    kind, name = meaning(word)
    if kind == "argument" and name in known:
        return f"; did you mean {name!r}?"
    if kind == "plugin":
        return f"; add [plugins.{name}]"
    if name == "plugins":
        return "; add [plugins.NAME] for each"
    if kind == "argument":
        return f"; the entry function returns it as {name!r}"
    return "; start the processes with torchrun" if kind else ""


def explained(owner: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates ``Trainer.__init__`` or ``fit``: wrong arguments get a line that says what to do.

    Args:
        owner: what is called, for messages: ``"Trainer()"``.
    """

    def around(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                given, known = set(kwargs), [*signature.parameters][1:]
                stranger = next((name for name in kwargs if name not in known), None)
                if stranger is not None:
                    hint = in_python(stranger, owner) or did_you_mean(stranger, known)
                    what = f"no argument {stranger!r}{hint}"
                    raise JobError(f"{owner} has {what}") from None
                raise JobError(f"{owner}: {error}{_all(signature, given)}") from None
            return function(*args, **kwargs)

        return call

    return around


def _all(signature: inspect.Signature, given: set[str]) -> str:
    """The arguments that one has to give, as the end of a message."""
    needed = [p.name for p in signature.parameters.values() if p.default is p.empty][1:]
    return f"; it needs {', '.join(needed)}" if needed and not given.issuperset(needed) else ""
