"""What each host delivers, row by row; ``docs/hosts.md`` shows what tests measured of it."""

from __future__ import annotations

from typing import Final

from hatbus_hosts.needs import Capabilities, rows

_LATER: Final = (
    "on_prediction_begin",
    "on_prediction_end",
    "write_outputs wrapped",
    "write_outputs replaced",
)
"""What only a prediction of hatbus's Trainer has."""
_SAVE: Final = "with save=<a function of a reason>"
_VALIDATE: Final = "with validate=<a function of a reason>, or a plugin that validates"
_NO_BATCH: Final = "another batch in ctx.batch has no effect"
_CALL: Final = "around the model's call, found by a hook on the model"
_DELIVERED: Final = (
    "run_loop wrapped",
    "on_loop_begin",
    "on_loop_end",
    "run_epoch wrapped",
    "on_epoch_begin",
    "on_epoch_end",
    "run_step wrapped",
    "on_step_begin",
    "on_step_end",
    "run_batch wrapped",
    "on_batch_end",
    "clip_gradients wrapped",
    "clip_gradients replaced",
    "optimizer_step wrapped",
    "on_optimizer_step_begin",
    "on_optimizer_step_end",
    "validate wrapped",
    "on_validation_begin",
    "on_validation_end",
    "export_model wrapped",
    "export_model replaced",
    "on_log",
    "on_exception",
    "request stop run",
    "request stop epoch",
    "state saved",
)
_CALLBACKS: Final[dict[str, bool | str]] = {
    **dict.fromkeys(_DELIVERED, True),
    "on_batch_begin": _NO_BATCH,
    "forward wrapped": _CALL,
    "on_forward_begin": _CALL,
    "on_forward_end": _CALL,
    "validate replaced": "on request only",
    "save_checkpoint wrapped": "around the saving of the plugins' states",
    "request validate": _VALIDATE,
}
"""What hosts deliver that tell callbacks what is going on; each of them differs in some rows."""

_LOST: Final = "not after an error of the trainer's, unless it runs inside `with host:`"
_NEXT: Final = "opened by the first batch that is evaluated"
TRANSFORMERS: Final = Capabilities(
    {
        **_CALLBACKS,
        "run_loop wrapped": _LOST,
        "on_loop_end": _LOST,
        "on_exception": "of plugins' errors; of the trainer's, inside `with host:`",
        "run_batch wrapped": "from the model's call on",
        "on_batch_begin": "at the model's call; another batch has no effect",
        "validate wrapped": _NEXT,
        "on_validation_begin": _NEXT,
        "on_checkpoint_saved": True,
        "request save": True,
        "request validate": "where the trainer has an eval_dataset",
    }
)

_IN_MODULE: Final = (
    "from on_train_batch_start to the loss; with model='net', around that module's call"
)
LIGHTNING: Final = Capabilities(
    {
        **_CALLBACKS,
        "forward wrapped": _IN_MODULE,
        "on_forward_begin": _IN_MODULE,
        "on_forward_end": _IN_MODULE,
        "backward wrapped": True,
        "on_backward_begin": "another loss in ctx.loss has no effect",
        "on_backward_end": True,
        "on_log": "what plugins publish, and Lightning's metrics at the end of a validation",
        "request stop epoch": False,
        "request save": "into hatbus-step=<n>.ckpt in the trainer's default_root_dir",
    }
)

_WITH_LOSS: Final = (
    "with loss=<the loss module>; else losses come from the engine's output, after the update"
)
_WITH_EVALUATOR: Final = "with attach_ignite(evaluator=...)"
IGNITE: Final = Capabilities(
    {
        **_CALLBACKS,
        "on_batch_end": _WITH_LOSS,
        "clip_gradients wrapped": _WITH_LOSS,
        "optimizer_step wrapped": "around the optimizer's own step, found by its hooks",
        "validate wrapped": _WITH_EVALUATOR,
        "on_validation_begin": _WITH_EVALUATOR,
        "on_validation_end": _WITH_EVALUATOR,
        "on_log": "what plugins publish, and the evaluator's metrics",
        "request save": _SAVE,
        "state saved": "with Checkpoint({'hatbus': host, ...})",
    }
)

_IN_VALIDATION: Final = "when the loop validates inside `with host.validation():`"
_BY_SAVE: Final = "when the loop saves by host.save(folder)"
_ACCELERATE_NEVER: Final = (
    "run_loop replaced",
    "run_epoch replaced",
    "run_step replaced",
    "run_batch replaced",
    "skip_batch",
    "save_checkpoint replaced",
    "load_checkpoint replaced",
    "load_checkpoint wrapped",
)

ACCELERATE: Final = Capabilities(
    {
        **{row: row not in (*_ACCELERATE_NEVER, *_LATER) for row in rows()},
        "request save": f"{_SAVE}, or checkpoint_dir=",
        "request validate": _VALIDATE,
        "on_checkpoint_saved": _BY_SAVE,
        "veto_checkpoint": _BY_SAVE,
        "on_validation_begin": _IN_VALIDATION,
        "on_validation_end": _IN_VALIDATION,
        "validate wrapped": _IN_VALIDATION,
    }
)

_BY_EMIT: Final = "when the loop loads by ctx.emit.load_checkpoint"
PLAIN: Final = Capabilities(
    {
        **{row: row not in _LATER for row in rows()},
        "run_loop replaced": False,
        "run_epoch replaced": False,
        "load_checkpoint wrapped": _BY_EMIT,
        "load_checkpoint replaced": _BY_EMIT,
    }
)
"""A loop of one's own around a bus: what it says and runs itself, as docs/bus-alone.md does."""

TABLES: Final = {
    "transformers": TRANSFORMERS,
    "lightning": LIGHTNING,
    "ignite": IGNITE,
    "accelerate": ACCELERATE,
    "plain": PLAIN,
}
"""Name of a library to what its host delivers."""
