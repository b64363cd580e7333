"""What a validation's callbacks keep from one to the next stands in the training's checkpoint."""

from __future__ import annotations

from typing import Any

from validated import batches, trainer

from hatbus import Context, hookimpl
from hatbus_validation.validation import Validation


class Counts:
    """Counts the batches of all validations."""

    def __init__(self) -> None:
        self.count = 0

    @hookimpl
    def on_batch_end(self) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Resumes:
    """Gives every plugin its state at loop begin, as a checkpoint does."""

    def __init__(self, states: Any) -> None:
        self.states = states

    @hookimpl(trylast=True)
    def on_loop_begin(self, ctx: Context) -> None:
        ctx.bus.load_state_dict(self.states)


def test_a_callback_counts_on_after_a_resume() -> None:
    first, again = Counts(), Counts()
    run = trainer(Validation(batches(3), callbacks=[first]))
    run.fit(num_epochs=2)
    states = run.bus.state_dict()
    assert states["validation"]["callbacks"] == {"": {"counts": {"count": 6}}}
    trainer(Validation(batches(3), callbacks=[again]), Resumes(states)).fit(num_epochs=1)
    assert again.count == 9


def test_a_callback_of_several_loaders_keeps_one_state_and_others_their_own() -> None:
    shared = Counts()
    run = trainer(Validation({"a": batches(1), "b": batches(2)}, callbacks=[shared]))
    run.fit(num_epochs=1)
    assert run.bus.state_dict()["validation"]["callbacks"] == {"a": {"counts": {"count": 3}}}
    each = [[Counts()], [Counts()]]
    own = Validation({"a": batches(1), "b": batches(2)}, callbacks=each, share_callbacks=False)
    run = trainer(own)
    run.fit(num_epochs=1)
    kept = run.bus.state_dict()["validation"]["callbacks"]
    assert [kept[name]["counts"]["count"] for name in ("a", "b")] == [1, 2]
