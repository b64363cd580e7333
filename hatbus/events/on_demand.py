"""The events that come at any time in a run: validation, checkpoints, export, logs, the end.

The events of the loop, and what the kinds of event mean: ``hatbus.events.training``.
"""

from __future__ import annotations

from hatbus.events.event import DECISION, MOMENT, SPAN, Result, event
from hatbus.events.payload import BATCH, LOOP


@event(SPAN, LOOP, "reason")
def validate() -> Result:
    """Evaluates the model; a validation plugin provides it, or several that share it.

    When: whenever a plugin calls ``ctx.emit.validate``, and on ``ctx.control.validate``.
    May change: which weights the model shows, restored on every way out.
    Returns: name to metric value, or False when nobody validates.
    On error: ``on_validation_end``; the error goes on to the caller.
    """


@event(MOMENT, LOOP)
def on_validation_begin() -> None:
    """A validation is about to start.

    When: around every ``validate``.
    May change: requests.
    Returns: nothing.
    On error: the run ends; ``on_validation_end`` still comes.
    """


@event(MOMENT, LOOP)
def on_validation_end() -> None:
    """A validation is over; its metrics are published (``ctx.latest``).

    When: around every ``validate``; raw weights are back.
    May change: requests.
    Returns: nothing.
    On error: the run ends, after every other plugin was called.
    """


@event(MOMENT, LOOP)
def on_prediction_begin() -> None:
    """A prediction is about to start; ``data_loader`` is what it goes over, its weights are shown.

    When: once per ``trainer.predict``, beside any training (``ctx.is_aside``).
    May change: ``ctx.step_id``, the first batch to predict: those before it are passed over.
    Returns: nothing.
    On error: the prediction ends; ``on_prediction_end`` still comes.
    """


@event(SPAN, BATCH, "samples")
def write_outputs() -> Result:
    """Writes the model's outputs for one batch; the plugin ``predictions`` writes files.

    When: for every batch of a prediction, in order (``step_id``), after ``forward``.
    May change: ``ctx.model_outs``, before it yields; whoever predicts gets them changed.
    Returns: True, or False when nobody writes.
    On error: the prediction ends; the error goes on to whoever predicts.
    """


@event(MOMENT, LOOP)
def on_prediction_end() -> None:
    """A prediction is over; ``ctx.exception`` says whether it was left before its end.

    When: once per ``trainer.predict``; the weights are still shown.
    May change: nothing.
    Returns: nothing.
    On error: the error goes on to whoever predicts.
    """


@event(DECISION, LOOP, "reason")
def veto_checkpoint() -> Result:
    """Asks whether a checkpoint must not be written now.

    When: before ``save_checkpoint``.
    May change: nothing.
    Returns: a reason against it, or None.
    On error: the run ends.
    """


@event(SPAN, LOOP, "reason")
def save_checkpoint() -> Result:
    """Writes a checkpoint; the checkpoint plugin provides it.

    When: whenever a plugin calls ``ctx.save(reason)``, and on ``ctx.control.save``.
    May change: nothing that trains.
    Returns: the checkpoint's path, or False when nobody saves.
    On error: earlier checkpoints are intact; the error goes on to the caller.
    """


@event(MOMENT, LOOP, "path")
def on_checkpoint_saved() -> None:
    """A checkpoint is durable under ``path``.

    When: after every committed checkpoint.
    May change: nothing that trains.
    Returns: nothing.
    On error: the run ends.
    """


@event(SPAN, LOOP, "path")
def load_checkpoint() -> Result:
    """Restores the run from a checkpoint; the checkpoint plugin provides it.

    When: on resume, inside ``on_loop_begin``.
    May change: everything.
    Returns: True, or False when nobody loads.
    On error: the run ends before anything was trained.
    """


@event(SPAN, LOOP, "reason")
def export_model() -> Result:
    """Writes the model for use elsewhere; an export plugin provides it.

    When: whenever a plugin calls ``ctx.emit.export_model``.
    May change: which weights the model shows, restored on every way out.
    Returns: the path written, or False when nobody exports.
    On error: the error goes on to the caller.
    """


@event(MOMENT, LOOP, "logs", "kind")
def on_log() -> None:
    """Values were published with ``ctx.log``; tensors are still on their device.

    When: at every ``ctx.log``.
    May change: nothing.
    Returns: nothing.
    On error: the run ends.
    """


@event(MOMENT, LOOP, "exception")
def on_exception() -> None:
    """The run is about to end with an exception.

    When: once, after the inner ends and before ``on_loop_end``.
    May change: nothing that trains.
    Returns: nothing.
    On error: noted on the exception; every other plugin is still called.
    """
