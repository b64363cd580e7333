"""``trainer.validate()``: the model as it is, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import batches, hearing, tiny_trainer, weights

from hatbus import hookimpl, plugin
from hatbus.callbacks import CsvLog, EarlyStopping, ExponentialMovingAverage, Validation
from hatbus.errors import JobError, PluginError

HELD_OUT = batches(2, seed=1)


def mean_loss(model: torch.nn.Module) -> float:
    """The mean squared error over all held-out samples; batches are of one size."""
    with torch.no_grad():
        found = [torch.nn.functional.mse_loss(model(x), y).double() for x, y in HELD_OUT]
    return float(sum(found) / len(found))


def test_a_model_is_validated_before_it_was_trained() -> None:
    trainer = tiny_trainer([Validation(HELD_OUT)])
    assert trainer.validate() == {"val/loss": mean_loss(trainer.ctx.model)}


def test_it_gives_what_the_trainings_own_validation_gave() -> None:
    trainer = tiny_trainer([Validation(HELD_OUT)])
    trainer.fit(num_epochs=2)
    assert trainer.validate()["val/loss"] == float(trainer.ctx.latest["val/loss"])


def test_only_what_was_just_computed_is_given() -> None:
    trainer = tiny_trainer([Validation(HELD_OUT)])
    trainer.ctx.latest["val/old"] = 1.0
    assert set(trainer.validate()) == {"val/loss"}
    assert trainer.ctx.latest == {"val/old": 1.0}


def test_a_training_with_validations_between_is_the_one_without() -> None:
    def trained(*, asks: bool) -> tuple[torch.Tensor, dict[str, Any], list[Any]]:
        heard: list[Any] = []
        stopping = EarlyStopping("val/loss", patience=9)
        average = ExponentialMovingAverage(decay=0.5)
        logged = hearing(["on_log"], lambda _, told: heard.append({**told["logs"]}))
        validation = Validation(HELD_OUT, val_interval=2)
        trainer = tiny_trainer([validation, stopping, average, logged], data=batches(5))
        for steps in (3, 5, 10):
            if asks:
                trainer.validate()
            trainer.fit(num_steps=steps)
            if asks:
                trainer.validate("raw")
        return weights(trainer), trainer.bus.state_dict(), heard

    (one, states, heard), (other, others, also) = trained(asks=False), trained(asks=True)
    assert torch.equal(one, other)
    assert states["validation"] == others["validation"]
    assert states["early_stopping"] == others["early_stopping"]
    before, after = states["ema"]["averages"], others["ema"]["averages"]
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert heard == also


def test_the_weights_that_were_asked_for_are_validated() -> None:
    average = ExponentialMovingAverage(decay=0.5, decay_base=0)
    trainer = tiny_trainer([Validation(HELD_OUT), average])
    trainer.fit(num_epochs=2)
    raw = mean_loss(trainer.ctx.model)
    assert trainer.validate("raw")["val/loss"] == raw
    averaged = trainer.validate("ema")["val/loss"]
    assert averaged == trainer.validate()["val/loss"] != raw
    trainer.ctx.model.load_state_dict(average.averages())
    assert averaged == mean_loss(trainer.ctx.model)


def test_weights_that_are_not_there_are_named_with_those_that_are() -> None:
    trainer = tiny_trainer([Validation(HELD_OUT), ExponentialMovingAverage()])
    with pytest.raises(PluginError, match="no weights 'emma' in this run; did you mean 'ema'"):
        trainer.validate("emma")


def test_plugins_that_only_write_hear_nothing(tmp_path: Any) -> None:
    @plugin(stage="report")
    class Writer:
        @hookimpl
        def on_loop_begin(self) -> None:
            raise AssertionError("no loop begins")

        @hookimpl
        def on_log(self) -> None:
            raise AssertionError("nothing is logged")

    trainer = tiny_trainer([Validation(HELD_OUT), Writer(), CsvLog(str(tmp_path / "logs"))])
    trainer.validate()
    assert not list(tmp_path.iterdir())


def test_a_plugin_around_validate_takes_part_whatever_its_stage() -> None:
    class Around:
        @hookimpl(wrapper=True)
        def validate(self, ctx: Any) -> Any:
            found = yield
            ctx.log({"mine": 1.0})
            return found

    trainer = tiny_trainer([Validation(HELD_OUT), Around()])
    assert set(trainer.validate()) == {"val/loss", "mine"}


def test_an_interval_of_the_job_does_not_keep_it_from_being_validated() -> None:
    trainer = tiny_trainer()
    trainer.bus.register(Validation(HELD_OUT), overrides={"every": "7 epochs"})
    assert set(trainer.validate()) == {"val/loss"}


@pytest.mark.parametrize("plugins", [[], [Validation(HELD_OUT, callbacks=[])]])
def test_a_trainer_that_cannot_validate_says_what_to_do(plugins: list[Any]) -> None:
    with pytest.raises(JobError, match=r"nothing validates: .* plugins=\[Validation\(loader\)\]"):
        tiny_trainer(plugins).validate()


def test_a_fit_is_not_validated_from_inside() -> None:
    class Inside:
        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            if ctx.exception is None:
                trainer.validate()

    trainer = tiny_trainer([Validation(HELD_OUT), Inside()])
    with pytest.raises(JobError, match=r"validate\(\) was called inside fit\(\); a plugin asks"):
        trainer.fit(num_steps=2)
    assert set(trainer.validate()) == {"val/loss"}
