"""``OrchardHooks``: hooks of RoboOrchardLab as a plugin of hatbus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hatbus import hookimpl, plugin
from hatbus_hosts.adapting import adapted
from hatbus_hosts.versions import check_version

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from hatbus import Context

    Wrapper = Generator[None, Any, Any]


@plugin(stage="report")
class OrchardHooks:
    """Runs hooks of RoboOrchardLab's pipelines: each channel's begin and end around a span.

    Channels: ``on_loop``, ``on_epoch``, ``on_step``, ``on_batch``, ``on_model_forward``,
    ``on_model_backward``. In a job a class of hooks may also be named itself:
    ``use = "robo_orchard_lab.pipeline.hooks:..."``.

    Args:
        hooks: one ``PipelineHooks`` or its config, or several.

    Raises:
        TypeError: of RoboOrchardLab, for what is no hook.
    """

    def __init__(self, hooks: Any | Sequence[Any]) -> None:
        check_version("robo-orchard-lab")
        from robo_orchard_lab.pipeline.hooks.mixin import PipelineHooks

        given = hooks if isinstance(hooks, (list, tuple)) else [hooks]
        self.given = given
        self.hooks = PipelineHooks.from_hooks(list(given))
        self._accelerator: Any = None

    @hookimpl(wrapper=True)
    def run_loop(self, ctx: Context) -> Wrapper:
        """The channel ``on_loop``."""
        return (yield from self._around("on_loop", ctx))

    @hookimpl(wrapper=True)
    def run_epoch(self, ctx: Context) -> Wrapper:
        """The channel ``on_epoch``."""
        return (yield from self._around("on_epoch", ctx))

    @hookimpl(wrapper=True)
    def run_step(self, ctx: Context) -> Wrapper:
        """The channel ``on_step``."""
        return (yield from self._around("on_step", ctx))

    @hookimpl(wrapper=True)
    def run_batch(self, ctx: Context) -> Wrapper:
        """The channel ``on_batch``."""
        return (yield from self._around("on_batch", ctx))

    @hookimpl(wrapper=True)
    def forward(self, ctx: Context) -> Wrapper:
        """The channel ``on_model_forward``."""
        return (yield from self._around("on_model_forward", ctx))

    @hookimpl(wrapper=True)
    def backward(self, ctx: Context) -> Wrapper:
        """The channel ``on_model_backward``."""
        return (yield from self._around("on_model_backward", ctx))

    def state_dict(self) -> dict[str, Any]:
        """What hooks with a ``state_dict`` keep, by their place in the list."""
        return {
            str(place): hook.state_dict()
            for place, hook in enumerate(self.given)
            if hasattr(hook, "state_dict")
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives it back."""
        for place, hook in enumerate(self.given):
            if str(place) in state:
                hook.load_state_dict(state[str(place)])

    def _around(self, channel: str, ctx: Context) -> Wrapper:
        arguments = self._arguments(ctx)
        with self.hooks.begin(channel, arguments):
            result = yield
            if channel == "on_model_forward":
                ctx.model_outs = result
            vars(arguments).update(vars(self._arguments(ctx)))
        return result

    def _arguments(self, ctx: Context) -> Any:
        from robo_orchard_lab.pipeline.hooks.mixin import PipelineHookArgs

        if self._accelerator is None:
            from accelerate import Accelerator

            self._accelerator = Accelerator(cpu=str(ctx.device) == "cpu")
        losses = [loss.detach() for loss in ctx.losses.values()]
        return PipelineHookArgs(
            accelerator=self._accelerator,
            epoch_id=ctx.epoch_id,
            step_id=ctx.step_id,
            global_step_id=ctx.global_step_id,
            max_epoch=ctx.num_epochs,
            max_step=ctx.num_steps,
            start_epoch=0,
            start_step=0,
            dataloader=ctx.data_loader,
            model=ctx.model,
            optimizer=ctx.optimizer,
            batch=ctx.batch,
            model_outputs=ctx.model_outs,
            reduce_loss=sum(losses) if losses else None,
        )


def plugin_class(cls: type[Any]) -> type[Any]:
    """The plugin class of a class of hooks, for a job that names it."""
    return adapted(OrchardHooks, cls)
