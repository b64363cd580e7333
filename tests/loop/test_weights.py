"""Weight views: shown for a while, never nested, closed on every way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tiny import tiny_trainer

from hatbus import Context, hookimpl
from hatbus.errors import PluginError
from hatbus.loop.weights import Weights


class Model:
    """Holds one number as its weights."""

    def __init__(self) -> None:
        self.value = "raw"

    @contextmanager
    def other(self) -> Iterator[None]:
        self.value = "other"
        try:
            yield
        finally:
            self.value = "raw"


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def weights(model: Model) -> Weights:
    weights = Weights()
    weights.add("ema", model.other)
    return weights


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_the_raw_weights_are_back_on_every_way_out(
    weights: Weights, model: Model, error: type[BaseException]
) -> None:
    def validate() -> None:
        with weights.showing("ema"):
            assert (weights.current, model.value) == ("ema", "other")
            raise error

    with pytest.raises(error):
        validate()
    assert (weights.current, model.value) == ("raw", "raw")
    with weights.showing("ema"):
        assert model.value == "other"


@pytest.mark.parametrize("inner", ["ema", "raw", "third"])
def test_views_do_not_nest(weights: Weights, model: Model, inner: str) -> None:
    weights.add("third", Model().other)
    nested = weights.showing(inner)
    with weights.showing("ema"):
        with pytest.raises(PluginError, match="do not nest"):
            nested.__enter__()
        assert weights.current == "ema"
        assert model.value == "other"


def test_a_view_that_cannot_be_opened_leaves_the_raw_weights(weights: Weights) -> None:
    @contextmanager
    def broken() -> Iterator[None]:
        raise RuntimeError("no memory")
        yield

    weights.add("broken", broken)
    view = weights.showing("broken")
    with pytest.raises(RuntimeError, match="no memory"):
        view.__enter__()
    assert weights.current == "raw"


def test_raw_is_always_there_and_unknown_names_are_refused(weights: Weights) -> None:
    assert weights.names == ("raw", "ema")
    with weights.showing("raw"):
        assert weights.current == "raw"
    view = weights.showing("emma")
    with pytest.raises(PluginError, match="unknown weight view 'emma'; did you mean 'ema'"):
        view.__enter__()


def test_a_view_does_not_outlive_its_plugin_beyond_a_fit() -> None:
    class Offers:
        @hookimpl
        def on_loop_begin(self, ctx: Context) -> None:
            ctx.weights.add("ema", self.show)

        @contextmanager
        def show(self) -> Iterator[None]:
            yield

    trainer = tiny_trainer({"ema": Offers()})
    for end in (1, 2):
        trainer.fit(num_steps=end)
        assert trainer.ctx.weights.names == ("raw", "ema")
    trainer.bus.unregister("ema")
    trainer.fit(num_steps=3)
    assert trainer.ctx.weights.names == ("raw",)
    trainer.bus.register(Offers(), "ema")
    trainer.fit(num_steps=4)
    assert trainer.ctx.weights.names == ("raw", "ema")


def test_a_name_has_one_owner_who_may_offer_it_again(weights: Weights, model: Model) -> None:
    weights.add("ema", model.other)
    for name in ("ema", "raw"):
        with pytest.raises(PluginError, match="exists already"):
            weights.add(name, Model().other)
