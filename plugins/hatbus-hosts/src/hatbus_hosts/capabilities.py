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
_TRANSFORMERS_LOST: Final = (
    "not after an error of the trainer's, unless it runs inside `with host:`"
)

_TRANSFORMERS_CALL: Final = "around the model's call, found by a hook on the model"

_TRANSFORMERS_NEXT: Final = "opened by the first batch that is evaluated"

TRANSFORMERS: Final = Capabilities(
    {
        "run_loop wrapped": _TRANSFORMERS_LOST,
        "on_loop_begin": True,
        "on_loop_end": _TRANSFORMERS_LOST,
        "run_epoch wrapped": True,
        "on_epoch_begin": True,
        "on_epoch_end": True,
        "run_step wrapped": True,
        "on_step_begin": True,
        "on_step_end": True,
        "run_batch wrapped": "from the model's call on",
        "on_batch_begin": "at the model's call; another batch has no effect",
        "on_batch_end": True,
        "forward wrapped": _TRANSFORMERS_CALL,
        "on_forward_begin": _TRANSFORMERS_CALL,
        "on_forward_end": _TRANSFORMERS_CALL,
        "clip_gradients wrapped": True,
        "clip_gradients replaced": True,
        "optimizer_step wrapped": True,
        "on_optimizer_step_begin": True,
        "on_optimizer_step_end": True,
        "validate wrapped": _TRANSFORMERS_NEXT,
        "validate replaced": "on request only",
        "on_validation_begin": _TRANSFORMERS_NEXT,
        "on_validation_end": True,
        "save_checkpoint wrapped": "around the saving of the plugins' states",
        "on_checkpoint_saved": True,
        "export_model wrapped": True,
        "export_model replaced": True,
        "on_log": True,
        "on_exception": "of plugins' errors; of the trainer's, inside `with host:`",
        "request stop run": True,
        "request stop epoch": True,
        "request save": True,
        "request validate": "where the trainer has an eval_dataset",
        "state saved": True,
    }
)

_LIGHTNING_FORWARD: Final = (
    "from on_train_batch_start to the loss; with model='net', around that module's call"
)

LIGHTNING: Final = Capabilities(
    {
        "run_loop wrapped": True,
        "on_loop_begin": True,
        "on_loop_end": True,
        "run_epoch wrapped": True,
        "on_epoch_begin": True,
        "on_epoch_end": True,
        "run_step wrapped": True,
        "on_step_begin": True,
        "on_step_end": True,
        "run_batch wrapped": True,
        "on_batch_begin": "another batch in ctx.batch has no effect",
        "on_batch_end": True,
        "forward wrapped": _LIGHTNING_FORWARD,
        "on_forward_begin": _LIGHTNING_FORWARD,
        "on_forward_end": _LIGHTNING_FORWARD,
        "backward wrapped": True,
        "on_backward_begin": "another loss in ctx.loss has no effect",
        "on_backward_end": True,
        "clip_gradients wrapped": True,
        "clip_gradients replaced": True,
        "optimizer_step wrapped": True,
        "on_optimizer_step_begin": True,
        "on_optimizer_step_end": True,
        "validate wrapped": True,
        "validate replaced": "on request only",
        "on_validation_begin": True,
        "on_validation_end": True,
        "save_checkpoint wrapped": "around the saving of the plugins' states",
        "export_model wrapped": True,
        "export_model replaced": True,
        "on_log": "what plugins publish, and Lightning's metrics at the end of a validation",
        "on_exception": True,
        "request stop run": True,
        "request save": "into hatbus-step=<n>.ckpt in the trainer's default_root_dir",
        "request validate": _VALIDATE,
        "state saved": True,
    }
)

_IGNITE_LOSS: Final = (
    "with loss=<the loss module>; else losses come from the engine's output, after the update"
)

_IGNITE_CALL: Final = "around the model's call, found by a hook on the model"

_IGNITE_HANDLER: Final = "with attach_ignite(evaluator=...)"

IGNITE: Final = Capabilities(
    {
        "run_loop wrapped": True,
        "on_loop_begin": True,
        "on_loop_end": True,
        "run_epoch wrapped": True,
        "on_epoch_begin": True,
        "on_epoch_end": True,
        "run_step wrapped": True,
        "on_step_begin": True,
        "on_step_end": True,
        "run_batch wrapped": True,
        "on_batch_begin": "another batch in ctx.batch has no effect",
        "on_batch_end": _IGNITE_LOSS,
        "forward wrapped": _IGNITE_CALL,
        "on_forward_begin": _IGNITE_CALL,
        "on_forward_end": _IGNITE_CALL,
        "clip_gradients wrapped": _IGNITE_LOSS,
        "clip_gradients replaced": True,
        "optimizer_step wrapped": "around the optimizer's own step, found by its hooks",
        "on_optimizer_step_begin": True,
        "on_optimizer_step_end": True,
        "validate wrapped": _IGNITE_HANDLER,
        "validate replaced": "on request only",
        "on_validation_begin": _IGNITE_HANDLER,
        "on_validation_end": _IGNITE_HANDLER,
        "save_checkpoint wrapped": "around the saving of the plugins' states",
        "export_model wrapped": True,
        "export_model replaced": True,
        "on_log": "what plugins publish, and the evaluator's metrics",
        "on_exception": True,
        "request stop run": True,
        "request stop epoch": True,
        "request save": _SAVE,
        "request validate": _VALIDATE,
        "state saved": "with Checkpoint({'hatbus': host, ...})",
    }
)

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
        "on_checkpoint_saved": "when the loop saves by host.save(folder)",
        "veto_checkpoint": "when the loop saves by host.save(folder)",
        "on_validation_begin": "when the loop validates inside `with host.validation():`",
        "on_validation_end": "when the loop validates inside `with host.validation():`",
        "validate wrapped": "when the loop validates inside `with host.validation():`",
    }
)

PLAIN: Final = Capabilities(
    {
        **{row: row not in _LATER for row in rows()},
        "run_loop replaced": False,
        "run_epoch replaced": False,
        "load_checkpoint wrapped": "when the loop loads by ctx.emit.load_checkpoint",
        "load_checkpoint replaced": "when the loop loads by ctx.emit.load_checkpoint",
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
