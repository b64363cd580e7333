"""One run of the contract, and what it left behind step by step."""

from __future__ import annotations

from collections.abc import Container, Generator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from hatbus import Trainer, hookimpl, rng
from hatbus.testing.saving import copied_states, fields_of, optimizer_state
from hatbus.testing.trees import copied, difference

if TYPE_CHECKING:
    from collections.abc import Callable

    from pluggy import HookImpl

    from hatbus import Context
    from hatbus.events import Event

RECORDER = "core.contract"


class After(NamedTuple):
    """What was so when a step was over.

    Attributes:
        step: ``global_step_id``.
        weights: the model's ``state_dict``.
        losses: by name.
        groups: the fields of the optimizer's parameter groups.
        modes: module name to training or not.
        trainable: parameter name to ``requires_grad``.
        random: the random state.
    """

    step: int
    weights: dict[str, Any]
    losses: dict[str, Any]
    groups: list[dict[str, Any]]
    modes: dict[str, bool]
    trainable: dict[str, bool]
    random: dict[str, Any]


class Recorder:
    """A part of the core that writes down every step, outside all plugins.

    Attributes:
        steps: what was so after each.
        logs: (step, name) to the published values.
    """

    def __init__(self) -> None:
        self.steps: list[After] = []
        self.logs: dict[tuple[int, str], list[Any]] = {}

    @hookimpl(wrapper=True, tryfirst=True)
    def run_step(self, ctx: Context) -> Generator[None, Any, Any]:
        """Writes down what a step left."""
        result = yield
        self.steps.append(after_step(ctx))
        return result

    @hookimpl(tryfirst=True)
    def on_log(self, ctx: Context, logs: Mapping[str, Any]) -> None:
        """Writes down what was published."""
        for name, value in logs.items():
            found = value.detach().clone() if hasattr(value, "detach") else value
            self.logs.setdefault((ctx.global_step_id, name), []).append(found)


def after_step(ctx: Context) -> After:
    """What is so now."""
    model, optimizer = ctx.model, ctx.optimizer
    return After(
        ctx.global_step_id,
        copied(dict(model.state_dict()), "model"),
        copied(dict(ctx.losses), "losses"),
        [copied(group, "optimizer") for group in fields_of(optimizer)] if optimizer else [],
        {name: module.training for name, module in model.named_modules()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        rng.capture(),
    )


class _Watched(Trainer):
    """A trainer with a recorder among its own parts."""

    recorder: Recorder

    def _register_core(self, *parts: Any) -> None:
        super()._register_core(*parts)
        self.recorder = Recorder()
        self.bus.register(self.recorder, RECORDER, core=True, outermost=True)


class Trial:
    """A trainer that is watched; the arguments are ``hatbus.Trainer``'s.

    Attributes:
        trainer: it.
        recorder: what the steps left.
    """

    def __init__(self, **options: Any) -> None:
        self.trainer = _Watched(**options)
        self.recorder = self.trainer.recorder

    @property
    def steps(self) -> list[After]:
        """What was so after each step."""
        return self.recorder.steps

    def watch(self, instrument: Callable[[Event, HookImpl], Callable[..., Any]]) -> None:
        """Calls what ``instrument`` gives in place of every plugin's implementation."""
        self.trainer.bus.instrument = instrument
        self.trainer.bus.freeze()

    def fit(self, num_steps: int) -> Trial:
        """Runs."""
        self.trainer.fit(num_steps=num_steps)
        return self

    def end(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Everything that counts at the end of a run, for these plugins."""
        ctx = self.trainer.ctx
        states = copied_states(ctx)
        return {
            "steps": ctx.position.global_step,
            "weights": copied(dict(ctx.model.state_dict()), "model"),
            "optimizer": optimizer_state(ctx),
            "random state": rng.capture(),
            "plugin state": {name: states[name] for name in names if name in states},
        }


def overwritten(names: Container[tuple[int, str]], one: Trial, two: Trial) -> str:
    """A name under which two instances of a plugin publish unlike values in one step, or "".

    Args:
        names: (step, name) of what one instance publishes.
        one: its run.
        two: the run of both.
    """
    for key, values in two.recorder.logs.items():
        more = key in names and len(values) > len(one.recorder.logs[key])
        if more and any(difference(values[0], value) for value in values[1:]):
            return key[1]
    return ""
