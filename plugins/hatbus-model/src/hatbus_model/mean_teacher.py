"""``MeanTeacher``: a teacher inside the model that is the moving average of its student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hatbus import hookimpl, plugin
from hatbus.errors import JobError, did_you_mean
from hatbus.loop import find_module, structure_changed, structure_of, unwrapped
from hatbus.option_values import text
from hatbus_model.moving_average import Lanes, Place, check_decay, places, warming_up

if TYPE_CHECKING:
    from torch import nn

    from hatbus.loop import Context


@plugin(stage="average")
class MeanTeacher:
    """Moves the teacher of a pair: ``teacher = d * teacher + (1 - d) * student``.

    The model is a module that holds both, as ``student`` and ``teacher``, of one architecture;
    ``MeanTeacherValidation`` validates either. ``d = decay * (1 - exp(-x / decay_base))`` at the
    ``x``-th committed update, from 1. Parameters and floating buffers are averaged, integer
    buffers copied. The teacher gets no gradients, so no optimizer touches it; it begins as a copy
    of the student and is saved with the model. What it shares with the student, or with any other
    part of the model, is not the teacher's: it trains as it would without it.

    Source: Tarvainen and Valpola, Mean teachers are better role models, 2017;
    ``hat.callbacks.MeanTeacherValidation`` for the pair.

    Args:
        decay: what the decay tends to.
        decay_base: updates over which it warms up; 0: none, ``decay`` from the start.
        student: module name of the student.
        teacher: module name of the teacher.
        copy_student: begin as a copy of the student; False leaves the teacher as it was given.
        warmup: ``"exponential"``, by ``decay_base``; or timm's ``"power"``, far quicker and without
            it: ``min(decay, 1 - x ** (-2 / 3))``.

    Raises:
        JobError: a value that cannot be used; at loop begin, modules that are no such pair.
    """

    def __init__(
        self,
        decay: float | None = 0.9999,
        decay_base: float | None = 2000,
        student: str = "student",
        teacher: str = "teacher",
        copy_student: bool = True,
        warmup: str = "exponential",
    ) -> None:
        self.decay, self.decay_base = check_decay("mean_teacher", decay, decay_base)
        self.warmup = warmup
        self._decay_at = warming_up("mean_teacher", warmup, self.decay, self.decay_base)
        text("mean_teacher: student", student)
        text("mean_teacher: teacher", teacher)
        if student == teacher:
            raise JobError(
                f"mean_teacher: student and teacher are both {student!r}; name two modules"
            )
        self.student, self.teacher, self.copy_student = student, teacher, copy_student
        self.updates, self._begun = 0, False
        self._lanes = Lanes({}, {})
        self._structure = -1

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Finds the pair and stops the teacher's gradients."""
        self._pair(ctx)

    @hookimpl
    def on_epoch_begin(self, ctx: Context) -> None:
        """Copies the student before the first update; a resume has come before this."""
        if not self._begun and self.copy_student:
            self._pair(ctx)
            with torch.no_grad():
                self._lanes.copy()
        self._begun = True

    @hookimpl
    def on_optimizer_step_end(self, ctx: Context) -> None:
        """Moves the teacher, if the update was committed."""
        if not ctx.committed or ctx.exception is not None:
            return
        if self._structure != structure_of(ctx):
            self._pair(ctx)
        self.updates += 1
        weight = 1.0 - self._decay_at(self.updates)
        with torch.no_grad():
            if not self._lanes.move(weight):
                self._pair(ctx)
                self._lanes.move(weight)

    def state_dict(self) -> dict[str, Any]:
        """Number of updates; the teacher's weights are saved with the model."""
        return {"updates": self.updates, "begun": self._begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on counting where the saved run stopped."""
        self.updates, self._begun = int(state["updates"]), bool(state["begun"])

    def _pair(self, ctx: Context) -> None:
        student = find_module(ctx.model, self.student, "mean_teacher: student")
        teacher = find_module(ctx.model, self.teacher, "mean_teacher: teacher")
        followed, moved = places(student), places(teacher)
        _check_pair(followed, moved)
        others = tensors_outside(ctx.model, teacher)
        own = {n: held[key] for n, (held, key) in moved.items() if id(held[key]) not in others}
        if teacher is student or (moved and not own):
            raise JobError(
                f"mean_teacher: the teacher {self.teacher!r} has no tensor of its own, the rest of "
                "the model holds them all; make it a copy: copy.deepcopy(student)"
            )
        stopped = [p for p in teacher.parameters() if p.requires_grad and id(p) not in others]
        for parameter in stopped:
            parameter.requires_grad_(False)
            parameter.grad = None
        if stopped:
            structure_changed(ctx)
        self._lanes = Lanes(own, followed)
        self._structure = structure_of(ctx)


def tensors_outside(model: nn.Module, part: nn.Module) -> set[int]:
    """Identities of the parameters and buffers that a model holds outside of one of its parts."""
    seen, waiting = {part}, [unwrapped(model)]
    found: set[int] = set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        found.update(map(id, module.parameters(recurse=False)))
        found.update(map(id, module.buffers(recurse=False)))
        waiting += [unwrapped(child) for child in module.children()]
    return found


def _check_pair(student: dict[str, Place], teacher: dict[str, Place]) -> None:
    shapes = [
        {n: tuple(held[key].shape) for n, (held, key) in p.items()} for p in (student, teacher)
    ]
    for name, shape in shapes[1].items():
        if name not in shapes[0]:
            hint = did_you_mean(name, shapes[0])
            raise JobError(f"mean_teacher: the teacher holds {name!r}, the student does not{hint}")
        if shapes[0][name] != shape:
            both = f"{shape} in the teacher and {shapes[0][name]} in the student"
            raise JobError(f"mean_teacher: {name!r} is {both}; give both one architecture")
    for name in shapes[0]:
        if name not in shapes[1]:
            raise JobError(f"mean_teacher: the student holds {name!r}, the teacher does not")
