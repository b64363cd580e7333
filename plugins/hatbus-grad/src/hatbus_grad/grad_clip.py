"""``GradClip``: gradients clipped once per step, by norm or by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hatbus import hookimpl, plugin
from hatbus.errors import JobError
from hatbus.parallel import full_tensor, is_shard
from hatbus_grad.clipping import check_limit, check_norm_type, clip_norm, clip_values

if TYPE_CHECKING:
    from hatbus.loop import Context


@plugin(stage="train", writes="grad.clip")
class GradClip:
    """Clips the gradients of the whole step, after its last backward and before the update.

    It owns ``grad.clip``: a second plugin that clips, ``GradScale(clip_grad_norm=...)`` included,
    is refused at start. fp16 gradients are unscaled before it looks at them.

    Args:
        max_norm: greatest total norm over all gradients of the optimizer.
        norm_type: order of the norm; ``float("inf")`` for the greatest absolute value.
        max_value: greatest absolute value of a single gradient, in place of ``max_norm``.
        log_interval: publish the norm before clipping as ``grad_norm`` every n steps (with
            ``max_norm`` only); < 1: never.

    Raises:
        JobError: not exactly one of ``max_norm`` and ``max_value``, or a value not above 0.
    """

    def __init__(
        self,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        max_value: float | None = None,
        log_interval: int = 0,
    ) -> None:
        if (max_norm is None) == (max_value is None):
            raise JobError("grad_clip: give max_norm= or max_value=, one of the two")
        self.max_norm = check_limit("grad_clip", "max_norm", max_norm)
        self.max_value = check_limit("grad_clip", "max_value", max_value)
        self.norm_type = check_norm_type("grad_clip", "norm_type", norm_type)
        if not isinstance(log_interval, int):
            raise JobError(
                f"grad_clip: log_interval is {log_interval!r}; accepted: a number of steps, 0 for "
                "never"
            )
        self.log_interval = log_interval

    def published_names(self, ctx: Context) -> list[str]:
        """The norm."""
        return ["grad_norm"]

    @hookimpl
    def clip_gradients(self, ctx: Context, optimizer: torch.optim.Optimizer) -> bool:
        """Clips."""
        if self.max_norm is None:
            clip_values(optimizer, self.max_value or 0.0)
            return True
        norm = clip_norm(optimizer, self.max_norm, self.norm_type)
        ctx.grad_norm = None if is_shard(norm) else norm
        if self.log_interval > 0 and (ctx.global_step_id + 1) % self.log_interval == 0:
            ctx.log({"grad_norm": full_tensor(norm)})
        return True
