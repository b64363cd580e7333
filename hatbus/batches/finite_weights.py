"""Weights that became NaN or infinite are not saved as good ones, and end a run."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Final

from hatbus.batches.finite_tensors import not_finite
from hatbus.errors import NonFiniteError
from hatbus.events.declare import hookimpl
from hatbus.log import log

if TYPE_CHECKING:
    from torch import Tensor

    from hatbus.loop.context import Context

WEIGHTS: Final = "core.finite_weights"
"""The name of the part that looks at the weights."""


class FiniteWeights:
    """Looks at the weights before every save, and when a run is over.

    A loss may be finite and its gradient not (``sqrt`` at 0): the update then makes the weights NaN
    without a word. What the optimizer trains must be finite, and a persistent buffer must hold no
    NaN (an infinity may well be meant, as in a mask). What was so before the first step is right.

    Args:
        nan: ``"raise"`` and ``"skip_step"`` end the run; ``"ignore"`` goes on, and saves nothing.
    """

    def __init__(self, nan: str) -> None:
        self._goes_on = nan == "ignore"
        self._from_the_start: set[str] = set()
        self._looked: tuple[int, str] = (-1, "")
        self._is_told = False

    @hookimpl
    def on_loop_begin(self, ctx: Context) -> None:
        """Notes what is not finite as it was built, before anything is resumed."""
        if ctx.position.global_step == 0:
            self._from_the_start = {name_in(said) for said in bad_weights(ctx)}
        self._looked = (-1, "")

    @hookimpl(wrapper=True, tryfirst=True)
    def run_loop(self, ctx: Context) -> Generator[None, Any, Any]:
        """Looks at the weights that the last step left.

        Raises:
            NonFiniteError: they are not finite.
        """
        result = yield
        self._refuse(self._look(ctx), ctx)
        return result

    @hookimpl
    def veto_checkpoint(self, ctx: Context) -> str | None:
        """Why there is nothing good to save."""
        return self._look(ctx) or None

    @hookimpl(wrapper=True, tryfirst=True, specname="veto_checkpoint")
    def refuse(self, ctx: Context) -> Generator[None, Any, Any]:
        """Ends the run on all ranks, where it is to end.

        Raises:
            NonFiniteError: the weights are not finite.
        """
        found = yield
        for name, why in found:
            if name == WEIGHTS:
                self._refuse(why, ctx)
        return found

    def _look(self, ctx: Context) -> str:
        """What is bad, in words; empty if nothing is. Once per step."""
        step = ctx.position.global_step
        if self._looked[0] != step:
            bad = (one for one in bad_weights(ctx) if name_in(one) not in self._from_the_start)
            self._looked = (step, next(bad, ""))
        return self._looked[1]

    def _refuse(self, what: str, ctx: Context) -> None:
        if not what or ctx.position.global_step == 0:
            return
        said = f"step {ctx.global_step_id} left {what}, so it is not saved"
        if not self._goes_on:
            raise NonFiniteError(
                f"{said}; checkpoints of before are good; lower the learning rate or clip "
                "gradients, or let the plugin nan_guard name the first tensor that is bad"
            )
        if not self._is_told and ctx.rank == 0:
            self._is_told = True
            log.warning("%s, nor is what follows while it is so (nan = 'ignore')", said)


def bad_weights(ctx: Context) -> Iterator[str]:
    """What the optimizer trains and is not finite, and buffers with a NaN, in words."""
    yield from (f"parameter {one}" for one in not_finite(trained(ctx)))
    modules = ctx.all_modules
    saved = set(modules.state_dict(keep_vars=True))
    buffers = ((n, b) for n, b in modules.named_buffers() if n in saved)
    yield from (f"buffer {one}" for one in not_finite(buffers, nan_only=True))


def trained(ctx: Context) -> Iterator[tuple[str, Tensor]]:
    """The parameters that the optimizer can change, by name."""
    names = {id(p): name for name, p in ctx.all_modules.named_parameters()}
    groups = [] if ctx.optimizer is None else ctx.optimizer.param_groups
    for group in groups:
        for number, parameter in enumerate(group["params"]):
            if parameter.requires_grad:
                yield names.get(id(parameter), f"#{number} of the optimizer"), parameter


def name_in(said: str) -> str:
    """Kind and name of what is bad, without how it is."""
    return said.rpartition(" (")[0]
