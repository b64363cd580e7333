"""Float, calibration, QAT, quantised: each stage calculates what torch's own tools calculate."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatbus import Trainer, hookimpl
from hatbus.discovery import build
from hatbus.errors import HatbusError
from hatbus_quantization import (
    Calibration2QAT,
    Float2Calibration,
    Float2QAT,
    Float2Traced,
    FreezeObservers,
    FuseBN,
    ModelConvertPipeline,
    QAT2Quantize,
)
from hatbus_quantization.eager import fake_quants

torch.set_num_threads(1)


class Net(nn.Module):
    """A small net for int8: stubs at its ends, a conv with norm and ReLU, a linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quant = torch.ao.quantization.QuantStub()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 4 * 4, 3))
        self.dequant = torch.ao.quantization.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dequant(self.head(self.body(self.quant(x))))
        return out


def batches(count: int = 4, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    chance = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 8, 1, 6, 6, generator=chance)
    return [(x, (x.mean((1, 2, 3)) > 0).long()) for x in inputs]


def train(model: nn.Module, *plugins: Any, steps: int = 6, lr: float = 0.05, **options: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    trainer = Trainer(model, optimizer, batches(), nn.functional.cross_entropy, plugins, **options)
    trainer.fit(num_steps=steps)
    return trainer.ctx.model


def torchs_qat(model: nn.Module, *, fold: bool = True) -> nn.Module:
    """What torch's documentation does by hand."""
    tool = torch.ao.quantization
    groups = [["body.0", "body.1", "body.2"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if fold:
            model = tool.fuse_modules(model.eval(), groups)
        else:
            model = tool.fuse_modules_qat(model.train(), groups)
        model.qconfig = tool.get_default_qat_qconfig("x86")
        return tool.prepare_qat(model.train())


def torchs_int8(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.convert(copy.deepcopy(model).eval())


@pytest.mark.parametrize(("mode", "fold"), [("fuse_bn", True), ("with_bn", False), (None, True)])
def test_qat_is_torchs_own_bit_for_bit(mode: str | None, fold: bool) -> None:
    ours, theirs = Float2QAT(qat_mode=mode)(Net()), torchs_qat(Net(), fold=fold)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for x, _ in batches():
        assert torch.equal(ours(x), theirs(x))
    a, b = QAT2Quantize()(copy.deepcopy(ours)), torchs_int8(theirs)
    assert type(a.body[0]).__module__.startswith("torch.ao.nn.intrinsic.quantized")  # type: ignore[index]
    assert torch.equal(a(batches()[0][0]), b(batches()[0][0]))


def test_a_models_own_way_of_fusing_comes_first() -> None:
    class Own(Net):
        fused = False

        def fuse_model(self) -> None:
            self.fused = True

    made: Any = Float2QAT()(Own())
    assert made.fused
    assert isinstance(made.body[1], nn.BatchNorm2d)


def test_calibration_sees_ranges_and_qat_goes_on_with_them() -> None:
    calibrated: Any = Float2Calibration()(Net())
    plain = eval_of(Net())
    for x, _ in batches():
        assert torch.allclose(calibrated(x), plain(x), atol=1e-6)  # in floats, norms folded
    assert not calibrated.training
    scale = calibrated.quant.activation_post_process.scale.clone()
    turned: Any = Calibration2QAT()(calibrated)
    assert turned.training
    assert all(bool(one.fake_quant_enabled) for one in fake_quants(turned))
    assert torch.equal(turned.quant.activation_post_process.scale, scale)
    x = batches()[0][0]
    error = (QAT2Quantize()(turned)(x) - plain(x)).abs().max()
    assert 0 < error < 0.05 * plain(x).abs().max()


def eval_of(model: nn.Module) -> nn.Module:
    return model.eval()


def test_a_model_that_is_qat_already_stays_as_it_is() -> None:
    model = Float2QAT()(Net())
    assert Float2QAT()(model) is model


def test_quantising_what_saw_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    QAT2Quantize()(Float2QAT()(Net()))
    assert "observers have seen no value; train or calibrate first" in caplog.text


def test_fuse_bn_folds_without_a_change_of_the_outputs() -> None:
    model, x = train(Net()), batches(seed=5)[0][0]
    before = eval_of(model)(x)
    folded = FuseBN()(model)
    assert not any(isinstance(one, nn.BatchNorm2d) for one in folded.modules())
    assert torch.allclose(folded(x), before, atol=1e-5)
    assert isinstance(FuseBN(["head"])(Net()).body[1], nn.BatchNorm2d)  # type: ignore[index]
    with pytest.raises(HatbusError, match="FuseBN: modules: unknown module 'bod'"):
        FuseBN(["bod"])(Net())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_float_to_traced_gives_a_graph_that_calculates_the_same() -> None:
    model, x = eval_of(Net()), batches()[0][0]
    graph = Float2Traced()(copy.deepcopy(model))
    assert graph.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(graph(x), model(x))
    traced = Float2Traced((x,))(copy.deepcopy(model))
    assert isinstance(traced, torch.jit.ScriptModule)
    assert torch.equal(traced(x), model(x))


def test_a_pipeline_of_configs_is_hats() -> None:
    config = {
        "type": "ModelConvertPipeline",
        "qat_mode": "with_bn",
        "qconfig_params": {"backend": "fbgemm"},
        "converters": [{"type": "Float2QAT"}, {"type": "FuseBN"}, lambda model: None],
    }
    pipeline = build(config)
    assert isinstance(pipeline, ModelConvertPipeline)
    first = pipeline.converters[0]
    assert (first.qat_mode, first.backend) == ("with_bn", "fbgemm")
    assert isinstance(pipeline.converters[1], FuseBN)
    assert fake_quants(pipeline(Net()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build({"type": "ModelConvertPipeline"}), "missing option 'converters'"),
        (
            lambda: ModelConvertPipeline([{"type": "Float2Quat"}]),
            "unknown type 'Float2Quat'; did you mean 'Float2QAT'",
        ),
        (
            lambda: ModelConvertPipeline([{"type": "Float2QAT", "qat_mod": 1}]),
            "Float2QAT: unknown option 'qat_mod'; did you mean 'qat_mode'",
        ),
        (lambda: ModelConvertPipeline([3]), "3 is no converter; accepted: callables"),
        (lambda: ModelConvertPipeline([], qat_mode="fuse"), "qat_mode is 'fuse'; accepted:"),
        (
            lambda: ModelConvertPipeline([], qconfig_params={"activation_observer": "mse"}),
            "'activation_observer' has no counterpart in torch's own quantisation",
        ),
        (lambda: ModelConvertPipeline([lambda m: 3])(Net()), "returned int; accepted: a model"),
        (lambda: Float2QAT("fx"), "convert_mode is 'fx'; accepted: 'eager', 'pt2e'"),
        (lambda: Float2QAT("pt2e"), "'pt2e' needs example_inputs"),
        (lambda: Float2QAT(backend="x68"), "unknown backend 'x68'; did you mean 'x86'"),
        (
            lambda: Float2QAT()(nn.Linear(1, 1)),
            "Linear has no QuantStub and no DeQuantStub; put them",
        ),
        (lambda: QAT2Quantize()(Net()), "Net is no QAT model; put Float2QAT before it"),
        (lambda: Float2QAT()(quantised()), "the model is quantised; give a float one"),
    ],
)
def test_a_mistake_is_told_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(HatbusError, match=message):
        make()


def quantised() -> nn.Module:
    return QAT2Quantize()(Float2QAT()(Net()))


def test_observers_stop_where_they_are_told() -> None:
    ranges: list[float] = []

    class Notes:
        @hookimpl
        def on_step_end(self, model: Any) -> None:
            ranges.append(float(model.quant.activation_post_process.scale))

    for unit, at, stops in (("step", 3, 3), ("epoch", 1, 4)):
        ranges.clear()
        train(Float2QAT()(Net()), FreezeObservers(at, unit), Notes(), steps=7)  # type: ignore[arg-type]
        assert len(set(ranges[:stops])) == stops
        assert len(set(ranges[stops - 1 :])) == 1
    with pytest.raises(HatbusError, match="the model has no observers; convert it first"):
        train(Net(), FreezeObservers(1))
