"""Which weights are validated, and that the raw ones are there again at every save."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from validated import Average, Net, Saves, Sees, batches, trainer

from hatbus.errors import PluginError
from hatbus_validation.validation import Validation

torch.set_num_threads(1)


def test_the_average_is_validated_and_raw_weights_are_there_at_every_save() -> None:
    sees, saves = Sees(), Saves()
    validation = Validation(batches(1), callbacks=[sees], val_interval=1, interval_by="step")
    run = trainer(Average(), validation, saves)
    run.fit(num_epochs=1)
    assert len(sees.first) == len(saves.saved["step"]) == 5
    for shown, saved in zip(sees.first, saves.saved["step"], strict=True):
        assert torch.equal(shown, saved * 0.5)
    raw = next(run.ctx.model.parameters())
    assert torch.equal(saves.saved["epoch"][0], raw)
    assert torch.equal(saves.saved["loop"][0], raw)


def test_raw_weights_are_validated_when_they_are_asked_for_or_there_is_no_average() -> None:
    for plugins, wanted in (([Average()], "raw"), ([], None)):
        sees, saves = Sees(), Saves()
        validation = Validation(batches(1), callbacks=[sees], weights=wanted)
        trainer(*plugins, validation, saves).fit(num_epochs=1)
        assert torch.equal(sees.first[0], saves.saved["epoch"][0])


def test_an_unknown_view_is_refused_before_training() -> None:
    run = trainer(Average(), Validation(batches(1), weights="emma"))
    with pytest.raises(PluginError, match="no weights 'emma' in this run; did you mean 'ema'"):
        run.fit(num_epochs=1)
    assert run.ctx.position.global_step == 0


def test_a_validation_model_gets_the_shown_weights_and_differences_are_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Wider(Net):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(2, 2)

    sees, saves, wider = Sees(), Saves(), Wider()
    validation = Validation(batches(1), callbacks=[sees], val_model=wider)
    with caplog.at_level(logging.WARNING, "hatbus"):
        trainer(Average(), validation, saves).fit(num_epochs=2)
    assert torch.equal(sees.first[1], saves.saved["epoch"][1] * 0.5)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1
    assert "2 not in the trained model (extra.weight, extra.bias)" in said[0]
    strict = trainer(Validation(batches(1), val_model=Wider, strict_match=True))
    with pytest.raises(PluginError, match=r"extra\.weight"):
        strict.fit(num_epochs=1)


def test_a_validation_model_that_is_not_initialised_keeps_its_weights() -> None:
    sees, own = Sees(), Net()
    kept = next(own.parameters()).detach().clone()
    validation = Validation(
        batches(1), callbacks=[sees], val_model=own, init_with_train_model=False
    )
    trainer(validation).fit(num_epochs=1)
    assert torch.equal(sees.first[0], kept)
    with pytest.raises(PluginError, match="val_model is 'net'; accepted: a model"):
        Validation(batches(1), val_model="net")  # type: ignore[arg-type]


def test_converters_are_applied_in_order_to_a_copy() -> None:
    def doubled(model: nn.Module) -> nn.Module:
        for p in model.parameters():
            p.data.mul_(2)
        return model

    def plus_one(model: nn.Module) -> None:
        for p in model.parameters():
            p.data.add_(1)

    sees, saves = Sees(), Saves()
    validation = Validation(
        batches(1), callbacks=[sees], model_convert_pipeline=[doubled, plus_one]
    )
    trainer(Average(), validation, saves).fit(num_epochs=1)
    assert torch.equal(sees.first[0], saves.saved["epoch"][0] * 0.5 * 2 + 1)
    assert torch.equal(saves.saved["loop"][0], saves.saved["epoch"][0])
    with pytest.raises(PluginError, match="model_convert_pipeline holds 3; accepted: callables"):
        Validation(batches(1), model_convert_pipeline=[3])  # type: ignore[list-item]
    with pytest.raises(PluginError, match="returned int; accepted: a model"):
        trainer(Validation(batches(1), model_convert_pipeline=lambda m: 1)).fit(num_epochs=1)
