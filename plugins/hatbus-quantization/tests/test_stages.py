"""Float, calibration, QAT, quantised: each stage calculates what torch's own tools calculate."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatbus import Trainer, hookimpl
from hatbus.callbacks import Checkpoint
from hatbus.discovery import build
from hatbus.errors import CheckpointError, HatbusError
from hatbus_quantization import (
    Calibration2QAT,
    Float2Calibration,
    Float2QAT,
    Float2Traced,
    FreezeObservers,
    FuseBN,
    LoadCheckpoint,
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


def test_calibration_sees_ranges_and_qat_goes_on_with_them(tmp_path: Path) -> None:
    calibrated = Float2Calibration()(Net())
    plain = eval_of(Net())
    for x, _ in batches():
        assert torch.allclose(calibrated(x), plain(x), atol=1e-6)  # in floats, norms folded
    assert not calibrated.training
    path = tmp_path / "calibration.pth.tar"
    torch.save({"state_dict": calibrated.state_dict()}, path)
    loaded = LoadCheckpoint(path)(Float2QAT()(Net()))
    turned = Calibration2QAT()(calibrated)
    x = batches(seed=3)[0][0]
    for model in (loaded, turned):
        assert all(bool(one.fake_quant_enabled) for one in fake_quants(model))
    assert torch.equal(loaded.eval()(x), turned.eval()(x))
    assert torch.equal(QAT2Quantize()(loaded)(x), QAT2Quantize()(turned)(x))


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


@pytest.mark.parametrize("form", ["hat", "safetensors", "checkpoint", "best", "marked", "run"])
def test_weights_come_from_every_form_of_a_checkpoint(tmp_path: Path, form: str) -> None:
    class Scores:
        @hookimpl
        def on_step_end(self, ctx: Any) -> None:
            ctx.log({"score": float(ctx.global_step_id == 2)})

    kept: dict[str, Tensor] = {}

    class Keeps:
        @hookimpl
        def on_checkpoint_saved(self, ctx: Any, path: Path) -> None:
            if ctx.position.global_step == 3:
                kept.update({n: v.clone() for n, v in ctx.model.state_dict().items()})

    checkpoint = Checkpoint(
        str(tmp_path),
        "float-",
        interval_by="step",
        mode="max",
        monitor_metric_key="score",
        save_hash=False,
    )
    last = train(Net(), Scores(), checkpoint, Keeps())
    torch.save({"state_dict": kept}, tmp_path / "weights.pth.tar")
    path = {
        "hat": tmp_path / "weights.pth.tar",
        "safetensors": tmp_path / "float-weights-best.safetensors",
        "checkpoint": tmp_path / "float-checkpoint-step-3",
        "best": tmp_path / "best",
        "marked": tmp_path / "float-checkpoint-best.pth.tar",
        "run": tmp_path,
    }[form]
    wanted = last.state_dict() if form == "run" else kept
    loaded = LoadCheckpoint(path)(Net()).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in wanted.items())


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    path = folder / "some.pth.tar"
    torch.save({"state_dict": state}, path)
    return path


def test_what_is_missing_or_left_over_is_refused_unless_allowed(tmp_path: Path) -> None:
    state = dict(Net().state_dict())
    state["extra"] = state.pop("body.0.bias")
    path = saved(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"1 missing .*body.0.bias.*allow_miss=True goes on"):
        LoadCheckpoint(path)(Net())
    with pytest.raises(CheckpointError, match=r"1 not in the model \(extra\); ignore_extra=True"):
        LoadCheckpoint(path, allow_miss=True)(Net())
    LoadCheckpoint(path, allow_miss=True, ignore_extra=True)(Net())

    def renamed(found: dict[str, Any]) -> dict[str, Any]:
        return {("body.0.bias" if n == "extra" else n): v for n, v in found.items()}

    LoadCheckpoint(path, renamed)(Net())
    state["head.1.weight"] = torch.zeros(3, 5)
    odd = saved(tmp_path, renamed(state))
    with pytest.raises(CheckpointError, match=r"head.1.weight \(3, 5\), \(3, 64\) in the model"):
        LoadCheckpoint(odd)(Net())
    LoadCheckpoint(odd, ignore_tensor_shape=True)(Net())
    with pytest.raises(CheckpointError, match="none of its weights is in the model"):
        LoadCheckpoint(saved(tmp_path, {"a": torch.ones(1)}), allow_miss=True, ignore_extra=True)(
            Net()
        )
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        LoadCheckpoint(tmp_path / "nowhere")(Net())
    with pytest.raises(CheckpointError, match="is marked 'best'; did the stage before end"):
        LoadCheckpoint(tmp_path / "float-checkpoint-best.pth.tar")(Net())


def test_observers_stop_where_they_are_told_and_stay_stopped(tmp_path: Path) -> None:
    ranges: list[Tensor] = []

    class Notes:
        @hookimpl
        def on_step_end(self, model: Any) -> None:
            ranges.append(model.quant.activation_post_process.scale.clone())

    def run(steps: int, resume: str | None = None) -> nn.Module:
        model = Float2QAT()(Net())
        checkpoint = Checkpoint(str(tmp_path), interval_by="step", resume=resume)
        return train(model, FreezeObservers(3, "step"), checkpoint, Notes(), steps=steps)

    whole = run(6)
    assert len({float(one) for one in ranges[:3]}) == 3
    assert len({float(one) for one in ranges[3:]}) == 1
    for path in tmp_path.glob("checkpoint-step-[56]*"):
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        path.rmdir()
    again = run(6, "auto")
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(HatbusError, match="the model has no observers; convert it first"):
        train(Net(), FreezeObservers(1))
