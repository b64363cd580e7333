"""Who is said to have failed: a plugin for its own code, none for the model's or the data's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny import batches, tiny_trainer

from hatbus import BatchProcessor, hookimpl
from hatbus.bus.blame import blame_of
from hatbus.cli.display import PLUGIN_FAILED, USER_CODE_FAILED, explain
from hatbus.errors import HatbusError
from hatbus_validation import Validation


class Around:
    """Wraps spans, and does nothing to what passes through."""

    @hookimpl(wrapper=True)
    def run_loop(self) -> Any:
        return (yield)

    @hookimpl(wrapper=True)
    def forward(self) -> Any:
        try:
            return (yield)
        except ValueError:
            self.seen = True
            raise  # the very same


class Translates:
    """Makes an error of its own of one that comes out of the loop."""

    @hookimpl(wrapper=True)
    def run_loop(self) -> Any:
        try:
            return (yield)
        except ValueError as error:
            raise LookupError("mine") from error


class RunsBatches:
    """Puts itself in the place of a batch, and calls the core's forward."""

    @hookimpl
    def run_batch(self, ctx: Any) -> Any:
        ctx.model_outs = ctx.emit.forward(ctx)
        return ctx.emit.compute_loss(ctx)


class Fails(torch.nn.Linear):
    """A model that fails in training or in validation."""

    def __init__(self, *, training: bool = True) -> None:
        super().__init__(3, 1)
        self.at = training

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training == self.at:
            raise ValueError("the model's")
        return super().forward(inputs)


def failing_data() -> Iterator[Any]:
    yield from batches(1)
    raise ValueError("the data's")


class Loader:
    """Fails after a batch; has no length."""

    def __iter__(self) -> Iterator[Any]:
        return failing_data()


def no_loss(*_: Any) -> float:
    return 0.5


def error_of(plugins: Any, **options: Any) -> BaseException:
    """What a run ends with."""
    trainer = tiny_trainer(plugins, **options)
    with pytest.raises((ValueError, LookupError, HatbusError)) as caught:
        trainer.fit(num_epochs=1)
    return caught.value


def validating(loader: Any, **options: Any) -> dict[str, object]:
    return {"around": Around(), "validation": Validation(loader, **options)}


TRAINING: dict[str, Callable[[], BaseException]] = {
    "model": lambda: error_of({"around": Around()}, model=Fails()),
    "data": lambda: error_of({"around": Around()}, data=Loader()),
    "model in a plugin's batch": lambda: error_of({"batch": RunsBatches()}, model=Fails()),
    "model in validation": lambda: error_of(validating(batches(2)), model=Fails(training=False)),
    "data in validation": lambda: error_of(validating(Loader())),
}


@pytest.mark.parametrize("part", TRAINING)
def test_an_error_that_only_passes_through_plugins_is_the_users(part: str, capsys: Any) -> None:
    error = TRAINING[part]()
    assert explain(error) == USER_CODE_FAILED
    whose = "data" if part.startswith("data") else "model"
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"hatbus: error: ValueError: the {whose}'s"
    assert any("step" in note for note in error.__notes__)


@pytest.mark.parametrize("where", ["training", "validation"])
def test_a_mistake_that_is_said_in_one_line_names_no_plugin_it_passed(
    where: str, capsys: Any
) -> None:
    if where == "training":
        error = error_of({"around": Around()}, loss=no_loss)
    else:
        processor = BatchProcessor(no_loss, need_grad_update=False)
        error = error_of(validating(batches(2), batch_processor=processor))
    assert explain(error) == 2
    assert capsys.readouterr().err == (
        "hatbus: error: loss 'loss' is a float; accepted: a 0-d tensor, a list of them, or "
        "{name: 0-d tensor}\n"
    )


def test_an_error_that_a_wrapper_makes_of_anothers_is_the_wrappers(capsys: Any) -> None:
    error = error_of({"around": Around(), "mine": Translates()}, model=Fails())
    found = blame_of(error)
    assert found is not None
    assert (found.plugin, found.event) == ("mine", "run_loop")
    assert explain(error) == PLUGIN_FAILED


def test_an_error_of_a_validations_own_plugin_names_that_plugin() -> None:
    class Buggy:
        @hookimpl
        def on_forward_end(self) -> None:
            raise ValueError("a bug")

    found = blame_of(error_of(validating(batches(2), callbacks=[Buggy()])))
    assert found is not None
    assert (found.plugin, found.event) == ("buggy", "on_forward_end")


class NoState:
    """A plugin that cannot say what it has seen."""

    def state_dict(self) -> dict[str, Any]:
        raise ValueError("no state today")

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    @hookimpl
    def on_step_end(self) -> None: ...


class Saves:
    @hookimpl
    def save_checkpoint(self, ctx: Any) -> bool:
        ctx.bus.state_dict()
        return True

    @hookimpl
    def on_step_end(self, ctx: Any) -> None:
        ctx.emit.save_checkpoint(ctx, "asked")


def test_a_state_that_fails_is_its_plugins_fault_not_that_of_who_asked() -> None:
    with pytest.raises(ValueError, match="no state today") as caught:
        tiny_trainer({"saves": Saves(), "empty": NoState()}).fit(num_epochs=1)
    blamed = blame_of(caught.value)
    assert blamed is not None
    assert (blamed.plugin, blamed.event) == ("empty", "state_dict in save_checkpoint")
    assert caught.value.__notes__ == [
        f"in plugin 'empty' ({__name__}), state_dict",
        "asked for by plugin 'saves', save_checkpoint, step 0",
    ]
