"""``MeanTeacherValidation``: validates the student or the teacher of a pair.

Source: ``hat.callbacks.MeanTeacherValidation``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from hatbus import plugin
from hatbus.errors import PluginError, did_you_mean
from hatbus.loop import RAW
from hatbus.option_values import one_of
from hatbus_validation.validation import Validation

if TYPE_CHECKING:
    from hatbus import Context

PAIR: Final = ("student", "teacher")


@plugin(stage="validate")
class MeanTeacherValidation(Validation):
    """As ``Validation``, of one half of a student and its teacher.

    The pair is either a model with submodules ``student`` and ``teacher``, or a model whose
    teacher is a weight view named ``teacher`` (plugin ``mean_teacher``); then the model's own
    weights are the student's.

    Args:
        inference_on: ``"student"`` or ``"teacher"``. With ``val_model`` the weights whose names
            start with this prefix (``student.`` or ``student_``) are copied into it, the prefix
            stripped once; without it the submodule, or the weight view, is validated.
        kwargs: the options of ``Validation``.

    Raises:
        JobError: a value that is not accepted.
        PluginError: an option that does not exist, or a model without such a half.
    """

    def __init__(self, inference_on: str = "student", **kwargs: Any) -> None:
        one_of("mean_teacher_validation: inference_on", inference_on, PAIR)
        options = inspect.signature(Validation).parameters
        for name in kwargs:
            if name not in options:
                hint = did_you_mean(name, options)
                raise PluginError(f"mean_teacher_validation: unknown option {name!r}{hint}")
        if "data_loader" not in kwargs:
            raise PluginError("mean_teacher_validation: missing option 'data_loader'")
        super().__init__(**kwargs)
        self.inference_on = inference_on

    def view(self, ctx: Context) -> str:
        """The teacher's view where the teacher is one, else as in ``Validation``.

        Raises:
            PluginError: there is neither such a submodule nor such a view.
        """
        if self.weights is not None or self._half(ctx) is not None or self._has_parts(ctx):
            return super().view(ctx)
        if "teacher" not in ctx.weights.names:
            children = ", ".join(repr(name) for name, _ in ctx.model.named_children())
            raise PluginError(
                f"mean_teacher_validation: no submodule {self.inference_on!r} in the model (it has "
                f"{children or 'none'}), and no weight view 'teacher' in the run; accepted: a "
                "pair of both names, or the plugin mean_teacher"
            )
        return "teacher" if self.inference_on == "teacher" else RAW

    def trained_model(self, ctx: Context) -> nn.Module:
        """The submodule, or all of the model under the view."""
        half = self._half(ctx)
        return ctx.model if half is None else half

    def train_state(self, ctx: Context) -> Mapping[str, torch.Tensor]:
        """The weights of the half, without its prefix."""
        state = ctx.model.state_dict()
        for end in (".", "_"):  # a submodule, or parts such as student_backbone
            prefix = f"{self.inference_on}{end}"
            picked = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
            if picked:
                return picked
        return state

    def _has_parts(self, ctx: Context) -> bool:
        """Whether ``val_model`` gets its weights from parts that are named with the prefix."""
        names = (name for name, _ in ctx.model.named_children())
        is_named = any(name.startswith(f"{self.inference_on}_") for name in names)
        return self.val_model is not None and is_named

    def _half(self, ctx: Context) -> nn.Module | None:
        return dict(ctx.model.named_children()).get(self.inference_on)
