"""Every event of a run: the contract between the loop and the plugins.

The loop, with every event in its place (a moment is written ``on_...``; everything else is a span
or a decision)::

    run_loop:                                      # on_loop_begin
        for each epoch, run_epoch:                 #   on_epoch_begin
            for each step, run_step:               #     (batches fetched) on_step_begin
                for each batch of the step:        #
                    skip_batch?                    #
                    run_batch:                     #       on_batch_begin
                        forward                    #         on_forward_begin, on_forward_end
                        compute_loss               #
                        backward                   #         on_backward_begin, on_backward_end
                                                   #       on_batch_end
                clip_gradients                     #
                skip_update?                       #
                optimizer_step                     #       on_optimizer_step_begin, ..._end
                                                   #     on_step_end
            requests are read: save, validate, stop
                                                   #   on_epoch_end
                                                   # on_loop_end

    at any time: validate (on_validation_begin, on_validation_end), save_checkpoint
    (veto_checkpoint?, on_checkpoint_saved), load_checkpoint, export_model, on_log,
    on_exception

    beside a training, trainer.predict:            # on_prediction_begin
        for each batch: forward, write_outputs     #   on_forward_begin, on_forward_end
                                                   # on_prediction_end

Three kinds of event:

* A *span* is work. Its first implementation with a result does it; the core registers the default
  last. Surround it with ``@hookimpl(wrapper=True)``, or replace it by returning something other
  than None.
* A *moment* is a notice. Its implementations return nothing. Begin and end come in pairs around a
  span: an end follows its begin on success, exception and Ctrl-C, and then every implementation of
  the end is called although another one failed; ``ctx.exception`` tells what happened.
* A *decision* asks. Every implementation may answer with a reason (a string) or None. What a
  plugin of one process decides, all processes do.

Implementations name only the arguments they want.
"""

from __future__ import annotations

from typing import Final

from hatbus.events.event import DECISION, DECLARED, MOMENT, PAIRS, SPAN, Event, Result, event
from hatbus.events.payload import BATCH, LOOP, STEP

__all__ = ["DECISION", "EVENTS", "MOMENT", "PAIRS", "SPAN", "Event"]


@event(SPAN, LOOP)
def run_loop() -> Result:
    """The whole run, from the first epoch to the last.

    When: once, from ``Trainer.fit``.
    May change: anything, before it yields.
    Returns: the number of steps that ran.
    On error: ``on_exception``, then ``on_loop_end``; the error leaves ``fit``.
    """


@event(MOMENT, LOOP)
def on_loop_begin() -> None:
    """The run is about to start: prepare, check names, open files, resume.

    When: once, before the first epoch. A checkpoint is loaded in stage ``checkpoint``, so plugins
    of stage ``report`` see the resumed counters.
    May change: model, optimizer, requests.
    Returns: nothing.
    On error: the run ends; ``on_loop_end`` still comes to every plugin.
    """


@event(SPAN, LOOP)
def run_epoch() -> Result:
    """One pass over the data.

    When: once per epoch.
    May change: anything, before it yields.
    Returns: the number of steps that ran in this epoch.
    On error: ``on_epoch_end``; the error goes on to ``run_loop``.
    """


@event(MOMENT, LOOP)
def on_epoch_begin() -> None:
    """An epoch is about to start.

    When: before the epoch's first batch is fetched. ``step_id`` is the first step that will run:
    0, or more when the run was resumed inside this epoch (then keep what was restored).
    May change: model, optimizer, requests.
    Returns: nothing.
    On error: the run ends; ``on_epoch_end`` still comes.
    """


@event(SPAN, STEP)
def run_step() -> Result:
    """One optimizer update attempt: one or more batches, then one update.

    When: once per step, after its batches were fetched (``ctx.batches``: (task, batch, weight)).
    May change: ``ctx.batches``.
    Returns: True if the update was committed, False if it was skipped.
    On error: ``on_step_end``; the error goes on to ``run_epoch``.
    """


@event(MOMENT, STEP)
def on_step_begin() -> None:
    """A step is about to start; its batches are fetched, its gradients are cleared after this.

    When: once per step; never once more at an epoch's end.
    May change: learning rates and other fields of the optimizer, module modes, requests.
    Returns: nothing.
    On error: the run ends; ``on_step_end`` still comes.
    """


@event(DECISION, BATCH)
def skip_batch() -> Result:
    """Asks whether to leave this batch out.

    When: before the step's first ``run_batch``, for every batch of the step. The micro-batches that
    are kept are averaged over their own number.
    May change: nothing.
    Returns: a reason to skip, or None.
    On error: the run ends.
    """


@event(SPAN, BATCH)
def run_batch() -> Result:
    """Forward, loss and backward of one batch of one task.

    When: once per batch (micro-batches of gradient accumulation are batches), in the task's scope.
    May change: ``ctx.batch``.
    Returns: the losses.
    On error: ``on_batch_end``; the error goes on to ``run_step``.
    """


@event(MOMENT, BATCH)
def on_batch_begin() -> None:
    """A batch is about to be run; it is on the device.

    When: once per batch. There may be several in one step (tasks, micro-batches).
    May change: ``ctx.batch``.
    Returns: nothing.
    On error: the run ends; ``on_batch_end`` still comes.
    """


@event(SPAN, BATCH)
def forward() -> Result:
    """The model's forward pass.

    When: once per batch.
    May change: ``ctx.batch``, before it yields.
    Returns: the model's outputs, which become ``model_outs``.
    On error: ``on_forward_end``; the error goes on to ``run_batch``.
    """


@event(MOMENT, BATCH)
def on_forward_begin() -> None:
    """The forward pass is about to start.

    When: once per batch.
    May change: ``ctx.batch``, module modes.
    Returns: nothing.
    On error: the run ends; ``on_forward_end`` still comes.
    """


@event(MOMENT, BATCH)
def on_forward_end() -> None:
    """The forward pass is over; ``model_outs`` are there.

    When: once per batch.
    May change: ``ctx.model_outs``.
    Returns: nothing.
    On error: the run ends, after every other plugin was called.
    """


@event(SPAN, BATCH)
def compute_loss() -> Result:
    """The losses of one batch.

    When: after ``forward``.
    May change: ``ctx.model_outs``, before it yields.
    Returns: name to 0-d tensor; their sum is what ``backward`` differentiates.
    On error: the error goes on to ``run_batch``.
    """


@event(SPAN, BATCH)
def backward() -> Result:
    """The backward pass: adds this batch's gradients.

    When: after ``compute_loss``, if gradients are wanted.
    May change: ``ctx.loss`` (the 0-d tensor to differentiate, weight included), before it yields.
    Returns: True.
    On error: ``on_backward_end``; the error goes on to ``run_batch``.
    """


@event(MOMENT, BATCH)
def on_backward_begin() -> None:
    """The backward pass is about to start; ``losses`` are there.

    When: once per batch.
    May change: ``ctx.loss``.
    Returns: nothing.
    On error: the run ends; ``on_backward_end`` still comes.
    """


@event(MOMENT, BATCH)
def on_backward_end() -> None:
    """The backward pass of one task's batch is over; gradients hold this and earlier batches.

    When: once per batch.
    May change: gradients.
    Returns: nothing.
    On error: the run ends, after every other plugin was called.
    """


@event(MOMENT, BATCH)
def on_batch_end() -> None:
    """A batch is over: update metrics here.

    When: once per batch.
    May change: requests, metrics.
    Returns: nothing.
    On error: the run ends, after every other plugin was called.
    """


@event(SPAN, STEP)
def clip_gradients() -> Result:
    """Clips the gradients of the whole step, once; one plugin may own it (``grad.clip``).

    When: after the last backward of the step, gradients unscaled.
    May change: gradients.
    Returns: True if anything clips, else False.
    On error: the error goes on to ``run_step``.
    """


@event(DECISION, STEP)
def skip_update() -> Result:
    """Asks whether to leave out this step's optimizer update.

    When: after ``clip_gradients``, once per step.
    May change: nothing.
    Returns: a reason to skip, or None.
    On error: the run ends.
    """


@event(SPAN, STEP)
def optimizer_step() -> Result:
    """The optimizer's update.

    When: after ``skip_update``, if nobody gave a reason to skip.
    May change: gradients, before it yields.
    Returns: True if the update was committed, False if it was not (fp16 overflow).
    On error: ``on_optimizer_step_end``; the error goes on to ``run_step``.
    """


@event(MOMENT, STEP)
def on_optimizer_step_begin() -> None:
    """The update is about to be made.

    When: once per step that is not skipped.
    May change: gradients, optimizer fields.
    Returns: nothing.
    On error: the run ends; ``on_optimizer_step_end`` still comes.
    """


@event(MOMENT, STEP)
def on_optimizer_step_end() -> None:
    """The update was made; ``ctx.updates`` counts it if it was committed (``ctx.committed``).

    When: once per step that is not skipped.
    May change: weights (averaging belongs here).
    Returns: nothing.
    On error: the run ends, after every other plugin was called.
    """


@event(MOMENT, STEP)
def on_step_end() -> None:
    """A step is over: log, validate, save.

    When: once per step, with the ids of its begin.
    May change: requests.
    Returns: nothing.
    On error: the run ends, after every other plugin was called.
    """


@event(MOMENT, LOOP)
def on_epoch_end() -> None:
    """An epoch is over.

    When: once per epoch, with the ids of its last step; also when a stop cut it short.
    May change: requests.
    Returns: nothing.
    On error: the run ends, after every other plugin was called.
    """


@event(MOMENT, LOOP)
def on_loop_end() -> None:
    """The run is over: write the last things, close files.

    When: once, with the ids of the last step that ran; also after an error.
    May change: nothing that trains.
    Returns: nothing.
    On error: every other plugin is still called; the first error leaves ``fit``.
    """


from hatbus.events import on_demand  # noqa: E402, F401 - their events come after these in the table

EVENTS: Final[dict[str, Event]] = DECLARED
"""Every event by name, in the order of the loop."""
