"""ExponentialMovingAverage: the worked numbers, the view, options, resume."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.errors import CheckpointError, JobError, PluginError
from hatbus_model.ema import ExponentialMovingAverage
from hatbus_model.moving_average import decay_at, decay_by_power, places

torch.set_num_threads(1)

WORKED = [0.6458775937, 1.229628249, 1.762186423, 2.258537402, 2.73521332, 3.20798173]


class One(nn.Module):
    """One weight, one floating, one integer and one non-persistent buffer."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.register_buffer("mean", torch.zeros(1, dtype=dtype))
        self.register_buffer("count", torch.zeros(1, dtype=torch.long))
        self.register_buffer("scratch", torch.zeros(1, dtype=dtype), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.sum() * 0 + x.sum() * 0


class SetTo:
    """Gives every tensor of the model the value k after update k."""

    def __init__(self, skip: tuple[int, ...] = ()) -> None:
        self.skip, self.now = skip, 0

    @hookimpl
    def skip_update(self, ctx: object) -> str | None:
        return "for the test" if ctx.global_step_id in self.skip else None

    @hookimpl(wrapper=True)
    def optimizer_step(self, model: nn.Module) -> Iterator[None]:
        result = yield
        self.now += 1
        with torch.no_grad():
            for tensor in (model.weight, model.mean, model.count, model.scratch):
                tensor.fill_(self.now)
        return result


class Averages:
    def __init__(self, ema: ExponentialMovingAverage, name: str = "weight") -> None:
        self.ema, self.name, self.found = ema, name, []

    @hookimpl
    def on_step_end(self) -> None:
        self.found.append(self.ema.averages()[self.name].item())


def run(
    *plugins: object, steps: int = 6, model: nn.Module | None = None, accumulate: int = 1
) -> Trainer:
    model = model or One()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    data = [(torch.zeros(1), 0)] * (steps * accumulate)
    trainer = Trainer(model, optimizer, data, lambda o, t: o, list(plugins), accumulate=accumulate)
    trainer.fit(num_epochs=1)
    return trainer


@pytest.mark.parametrize("name", ["weight", "mean"])
def test_worked_numbers_for_parameters_and_floating_buffers(name: str) -> None:
    ema = ExponentialMovingAverage(0.9, 2)
    averages = Averages(ema, name)
    run(SetTo(), ema, averages)
    assert averages.found == pytest.approx(WORKED, abs=1e-9)


def test_only_committed_updates_count() -> None:
    ema = ExponentialMovingAverage(0.9, 2)
    averages = Averages(ema)
    run(SetTo(skip=(1, 4)), ema, averages)
    expected = [WORKED[i] for i in (0, 0, 1, 2, 2, 3)]
    assert averages.found == pytest.approx(expected, abs=1e-9)


def test_micro_batches_count_as_one_update() -> None:
    ema = ExponentialMovingAverage(0.9, 2)
    run(SetTo(), ema, accumulate=3)
    assert ema.averages()["weight"].item() == pytest.approx(WORKED[-1], abs=1e-9)


def test_integer_buffers_are_copied_and_scratch_is_left_alone() -> None:
    ema = ExponentialMovingAverage(0.9, 2)
    trainer = run(SetTo(), ema)
    assert ema.averages()["count"].item() == 6
    assert "scratch" not in ema.averages()
    with trainer.ctx.weights.showing("ema"):
        assert trainer.ctx.model.scratch.item() == 6


def test_buffers_can_be_copied() -> None:
    ema = ExponentialMovingAverage(0.9, 2, buffers="copy")
    run(SetTo(), ema)
    assert ema.averages()["mean"].item() == 6
    assert ema.averages()["weight"].item() == pytest.approx(WORKED[-1], abs=1e-9)


def test_start_step_begins_as_a_copy() -> None:
    ema = ExponentialMovingAverage(0.9, 2, start_step=3)
    averages = Averages(ema)
    run(SetTo(), ema, averages)
    value, expected = 3.0, []
    for x in (1, 2, 3):
        d = decay_at(x, 0.9, 2)
        value = d * value + (1 - d) * (3 + x)
        expected.append(value)
    assert averages.found[2:] == pytest.approx([3.0, *expected], abs=1e-12)


def test_before_the_start_the_view_shows_the_raw_weights() -> None:
    trainer = run(SetTo(), ExponentialMovingAverage(0.9, 2, start_step=50))
    with trainer.ctx.weights.showing("ema"):
        assert trainer.ctx.model.weight.item() == 6


@pytest.mark.parametrize("at", [0, 2, 3, 4])
def test_a_run_cut_around_the_start_continues_exactly(
    continues_exactly: Callable[..., object], at: int
) -> None:
    def build(more: list[object]) -> Trainer:
        return trainer_of(network(), ExponentialMovingAverage(0.9, 2, start_step=4), *more)

    continues_exactly(build, 8, at)


def test_interval_keeps_the_time_over_which_is_averaged() -> None:
    ema = ExponentialMovingAverage(0.9, 0, interval=2)
    averages = Averages(ema)
    run(SetTo(), ema, averages)
    second = 0.19 * 2
    fourth = 0.81 * second + 0.19 * 4
    assert averages.found[:5] == pytest.approx([0, second, second, fourth, fourth])


def test_half_life() -> None:
    ema = ExponentialMovingAverage(half_life=10, decay_base=0)
    assert ema.decay**10 == pytest.approx(0.5)


def test_low_precision_weights_are_averaged_in_float32() -> None:
    model = One(torch.bfloat16)
    ema = ExponentialMovingAverage(0.999, 0)
    trainer = run(SetTo(), ema, model=model)
    average = ema.averages()["weight"]
    assert average.dtype is torch.float32
    assert average.item() == pytest.approx(
        sum(0.001 * 0.999 ** (6 - k) * k for k in range(1, 7)), rel=1e-4
    )
    with trainer.ctx.weights.showing("ema"):
        assert model.weight.dtype is torch.bfloat16


@pytest.mark.parametrize(
    "kind",
    [
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
        torch.float4_e2m1fn_x2,
    ],
)
def test_floats_of_one_byte_are_copied(kind: torch.dtype) -> None:
    def codes(number: int) -> torch.Tensor:
        return torch.full((3,), number, dtype=torch.uint8).view(kind)

    class Recode:
        @hookimpl(wrapper=True)
        def optimizer_step(self, model: nn.Module, global_step_id: int) -> Iterator[None]:
            result = yield
            model.codes = codes(global_step_id)
            return result

    model = One()
    model.register_buffer("codes", codes(0))
    model.table = nn.Parameter(codes(9), requires_grad=False)
    ema = ExponentialMovingAverage(0.9, 0)
    trainer = run(SetTo(), Recode(), ema, model=model)
    for name, expected in (("codes", [5] * 3), ("table", [9] * 3)):
        assert ema.averages()[name].dtype is kind
        assert ema.averages()[name].view(torch.uint8).tolist() == expected
        with trainer.ctx.weights.showing("ema"):
            assert getattr(model, name).view(torch.uint8).tolist() == expected


def test_the_view_shows_the_average_and_gives_the_raw_weights_back() -> None:
    ema = ExponentialMovingAverage(0.9, 2)
    trainer = run(SetTo(), ema)
    model, weights = trainer.ctx.model, trainer.ctx.weights
    parameter, storage = model.weight, model.weight.data_ptr()

    def validate() -> None:
        with weights.showing("ema"):
            assert model.weight.item() == pytest.approx(WORKED[-1])
            assert weights.current == "ema"
            model.mean += 1  # a forward pass in train mode would
            raise RuntimeError("validation failed")

    with pytest.raises(RuntimeError, match="validation failed"):
        validate()
    assert weights.current == "raw"
    assert model.weight is parameter
    assert model.weight.data_ptr() == storage
    assert model.weight.item() == model.mean.item() == 6
    assert ema.averages()["mean"].item() == pytest.approx(WORKED[-1])


def test_views_do_not_nest() -> None:
    trainer = run(SetTo(), ExponentialMovingAverage())
    weights = trainer.ctx.weights
    nested = weights.showing("raw")
    with weights.showing("ema"), pytest.raises(PluginError, match="do not nest"):
        nested.__enter__()
    with weights.showing("raw"):
        assert trainer.ctx.model.weight.item() == 6


def test_an_unknown_view_names_the_known_ones() -> None:
    trainer = run(SetTo(), ExponentialMovingAverage())
    with (
        pytest.raises(PluginError, match="did you mean 'ema'"),
        trainer.ctx.weights.showing("emma"),
    ):
        pass


def test_two_averages_need_two_names() -> None:
    one, two = ExponentialMovingAverage(0.9), ExponentialMovingAverage(0.99)
    model = One()
    plugins = {"one": one, "two": two}
    trainer = Trainer(model, torch.optim.SGD(model.parameters()), [(torch.zeros(1), 0)],
                      lambda o, t: o, plugins)  # fmt: skip
    with pytest.raises(PluginError, match="choose another name"):
        trainer.fit(num_epochs=1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


def fit(trainer: Trainer, steps: int) -> Trainer:
    trainer.fit(num_steps=steps)
    return trainer


def trainer_of(model: nn.Module, *plugins: object) -> Trainer:
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(5, 3, generator=generator), torch.randn(5, 1, generator=generator))] * 99
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Trainer(model, optimizer, data, nn.functional.mse_loss, list(plugins))


def test_training_is_the_same_bits_with_and_without_it() -> None:
    plain, averaged = network(), network()
    fit(trainer_of(plain), 7)
    fit(trainer_of(averaged, ExponentialMovingAverage(0.9, 2)), 7)
    assert all(map(torch.equal, plain.state_dict().values(), averaged.state_dict().values()))


def test_it_continues_exactly_from_its_state() -> None:
    whole = ExponentialMovingAverage(0.9, 5)
    fit(trainer_of(network(), whole), 9)

    class Cut:
        state: dict

        @hookimpl
        def on_step_end(self, ctx: object) -> None:
            if ctx.global_step_id == 3:
                parts = (ctx.model, ctx.optimizer, first)
                self.state = copy.deepcopy([part.state_dict() for part in parts])

    class Continue:
        @hookimpl
        def on_loop_begin(self, ctx: object) -> None:
            model, optimizer, ema = cut.state
            second.load_state_dict(ema)
            ctx.model.load_state_dict(model)
            ctx.optimizer.load_state_dict(optimizer)
            ctx.position.step = ctx.position.global_step = 4

    first, second, cut = ExponentialMovingAverage(0.9, 5), ExponentialMovingAverage(0.9, 5), Cut()
    fit(trainer_of(network(), first, cut), 6)
    fit(trainer_of(network(), second, Continue()), 9)
    assert second.updates == whole.updates == 9
    assert second.averages().keys() == whole.averages().keys()
    assert all(torch.equal(v, whole.averages()[n]) for n, v in second.averages().items())


def test_a_state_of_another_model_is_refused_by_name() -> None:
    ema = ExponentialMovingAverage()
    trainer = trainer_of(network(), ema)
    fit(trainer, 1)
    state = ema.state_dict()
    state["averages"]["0.wieght"] = state["averages"].pop("0.weight")
    ema.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"'0.wieght'.*did you mean '0.weight'"):
        fit(trainer, 2)


def test_offloaded_average_is_the_same() -> None:
    here, away = ExponentialMovingAverage(0.9, 5), ExponentialMovingAverage(0.9, 5, offload=True)
    fit(trainer_of(network(), here), 5)
    fit(trainer_of(network(), away), 5)
    assert all(torch.equal(v, away.averages()[n]) for n, v in here.averages().items())


def test_tied_weights_are_averaged_once_and_stay_tied_in_the_view() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    model[1].weight = model[0].weight
    assert "1.weight" not in places(model)
    trainer = fit(trainer_of(model, ExponentialMovingAverage(0.9, 0)), 3)
    with trainer.ctx.weights.showing("ema"):
        assert model[1].weight is model[0].weight
        assert model[1].weight.data_ptr() == model[0].weight.data_ptr()


@pytest.mark.parametrize(
    "options",
    [{"decay": 1.0}, {"decay": -0.1}, {"decay_base": -1}, {"interval": 0},
     {"start_step": -1}, {"buffers": "averages"}, {"half_life": 0}],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(JobError, match=r"^ema: .*accepted|^ema: .*did you mean"):
        ExponentialMovingAverage(**options)


class Weighed(nn.Module):
    """A loss with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.log_var = nn.Parameter(torch.zeros(()))

    def forward(self, outs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.exp(-self.log_var) * (outs - target).square().mean() + self.log_var


@pytest.mark.parametrize("modules", [(), ("loss",)])
def test_what_stands_beside_the_model_is_averaged_if_asked(modules: tuple[str, ...]) -> None:
    model, loss = nn.Linear(1, 1), Weighed()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    ema = ExponentialMovingAverage(0.5, 0, modules=modules)
    data = [(torch.ones(2, 1), torch.ones(2, 1))]
    trainer = Trainer(model, optimizer, data, loss, [ema])
    mean = 0.0
    for step in (1, 2, 3):
        trainer.fit(num_steps=step)
        mean = 0.5 * mean + 0.5 * loss.log_var.item()
    live = loss.log_var.item()
    with trainer.ctx.weights.showing("ema"):
        assert loss.log_var.item() == pytest.approx(mean if modules else live)
    assert loss.log_var.item() == live
    assert ("loss.log_var" in ema.state_dict()["averages"]) == bool(modules)


def test_a_module_that_is_not_beside_the_model_is_refused() -> None:
    model = nn.Linear(1, 1)
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [(torch.ones(2, 1), torch.ones(2, 1))],
        Weighed(),
        [ExponentialMovingAverage(modules=["los"])],
    )
    with pytest.raises(JobError, match="no module 'los' beside the model; did you mean 'loss'"):
        trainer.fit(num_steps=1)


def test_the_quicker_warm_up_beside_hats() -> None:
    hat = [decay_at(x, 0.9999, 2000) for x in (1, 10, 100, 1000, 10_000)]
    timm = [decay_by_power(x, 0.9999) for x in (1, 10, 100, 1000, 10_000)]
    assert hat == pytest.approx([0.0005, 0.004987, 0.048766, 0.393430, 0.993162], abs=1e-6)
    assert timm == pytest.approx([0.0, 0.784557, 0.953584, 0.99, 0.997846], abs=1e-6)
    assert decay_by_power(10**7, 0.9999) == 0.9999


def test_an_average_with_the_quicker_warm_up() -> None:
    ema = ExponentialMovingAverage(0.9, 2, warmup="power")
    averages = Averages(ema)
    run(SetTo(), ema, averages)
    value, expected = 0.0, []
    for x in range(1, 7):
        d = min(0.9, 1 - x ** (-2 / 3))
        value = d * value + (1 - d) * x
        expected.append(value)
    assert averages.found == pytest.approx(expected, abs=1e-9)


def test_an_unknown_warm_up_is_refused() -> None:
    with pytest.raises(JobError, match="ema: warmup is 'timm'; accepted: 'exponential', 'power'"):
        ExponentialMovingAverage(warmup="timm")
