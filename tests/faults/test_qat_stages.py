"""A QAT model trains, averages, validates, saves, resumes and freezes as any other does."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatbus import Trainer, hookimpl
from hatbus.callbacks import (
    Checkpoint,
    ExponentialMovingAverage,
    FreezeModule,
    SaveTraced,
    Validation,
)
from hatbus_quantization import Float2QAT, ModelConvertPipeline, QAT2Quantize

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.load` is:DeprecationWarning"),
    # torch says once that its quantised tensors are deprecated, wherever the first one is made
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning"),
]


class Net(nn.Module):
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


def batches(count: int = 4, seed: int = 0, scale: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    chance = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 8, 1, 6, 6, generator=chance) * scale
    return [(x, (x.mean((1, 2, 3)) > 0).long()) for x in inputs]


class Outputs:
    """Keeps what a validation's model returned."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.kinds: set[str] = set()

    @hookimpl
    def on_loop_begin(self, model: nn.Module) -> None:
        self.seen = []
        self.kinds = {type(one).__module__ for one in model.modules()}

    @hookimpl
    def on_batch_end(self, model_outs: Tensor) -> None:
        self.seen.append(model_outs.clone())


def train(model: nn.Module, plugins: Any, epochs: int = 3, **options: Any) -> Trainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss = nn.functional.cross_entropy
    trainer = Trainer(model, optimizer, batches(), loss, plugins, **options)
    trainer.fit(num_epochs=epochs)
    return trainer


def outputs(model: nn.Module, data: Any) -> list[Tensor]:
    with torch.no_grad():
        return [model.eval()(x) for x, _ in data]


def torchs_int8(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.convert(copy.deepcopy(model).eval())


HELD = batches(2, seed=7, scale=0.05)
"""Another range of values than that of training."""
FORMS: dict[str, Any] = {
    "the trained model, quantised": lambda: {"model_convert_pipeline": [QAT2Quantize()]},
    "a pipeline that begins with what is done": lambda: {
        "model_convert_pipeline": ModelConvertPipeline([Float2QAT(), QAT2Quantize()])
    },
    "HAT's: a float val_model, converted first": lambda: {
        "val_model": Net(),
        "model_convert_pipeline": {
            "type": "ModelConvertPipeline",
            "converters": [{"type": "Float2QAT"}, {"type": "QAT2Quantize"}],
        },
    },
    "a QAT val_model": lambda: {
        "val_model": Float2QAT()(Net()),
        "model_convert_pipeline": [QAT2Quantize()],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_quantised_validation_is_torchs_own_convert_of_the_same_weights(form: str) -> None:
    model, kept = Float2QAT()(Net()), Outputs()
    options = {"strict_match": True, **FORMS[form]()}
    trainer = train(model, [Validation(HELD, None, [kept], **options)])
    assert any(name.startswith("torch.ao.nn.quantized") for name in kept.kinds)
    expected = outputs(torchs_int8(trainer.ctx.model), HELD)
    assert all(map(torch.equal, kept.seen, expected))


class Unseen:
    """Compares the model before and after each validation."""

    def __init__(self) -> None:
        self.same: list[bool] = []

    @hookimpl(wrapper=True)
    def validate(self, model: nn.Module) -> Any:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        result = yield
        after = model.state_dict()
        self.same.append(all(torch.equal(after[name], value) for name, value in before.items()))
        return result


@pytest.mark.parametrize("own", [None, Net, lambda: Float2QAT()(Net())])
@pytest.mark.parametrize("pipeline", [None, [Float2QAT()]])
def test_a_qat_validation_is_the_trained_model_with_its_ranges(own: Any, pipeline: Any) -> None:
    if own is Net and pipeline is None:
        return  # a float val_model has no ranges to get
    model, kept, unseen = Float2QAT()(Net()), Outputs(), Unseen()
    options = {"val_model": own()} if own is not None else {}
    validation = Validation(
        HELD, None, [kept], model_convert_pipeline=pipeline, strict_match=True, **options
    )
    trainer = train(model, [unseen, validation])
    still = copy.deepcopy(trainer.ctx.model)
    for one in still.modules():
        if isinstance(one, torch.ao.quantization.FakeQuantizeBase):
            one.disable_observer()
    assert all(map(torch.equal, kept.seen, outputs(still, HELD)))
    assert unseen.same == [True] * 3


def test_a_float_model_is_validated_as_its_quantised_self(caplog: Any) -> None:
    model, kept = Net(), Outputs()
    pipeline = [Float2QAT(), observe, QAT2Quantize()]
    trainer = train(model, [Validation(HELD, None, [kept], model_convert_pipeline=pipeline)])
    theirs = observe(Float2QAT()(copy.deepcopy(trainer.ctx.model)))
    assert all(map(torch.equal, kept.seen, outputs(torchs_int8(theirs), HELD)))


def observe(model: nn.Module) -> nn.Module:
    outputs(model, batches())
    return model


def test_averages_of_a_qat_model_are_validated_and_quantised() -> None:
    model, kept = Float2QAT()(Net()), Outputs()
    validation = Validation(HELD, None, [kept], model_convert_pipeline=[QAT2Quantize()])
    trainer = train(model, [ExponentialMovingAverage(0.9, 1), validation])
    with trainer.ctx.weights.showing("ema"):
        expected = outputs(torchs_int8(trainer.ctx.model), HELD)
    assert all(map(torch.equal, kept.seen, expected))


def removed(folder: Path, pattern: str) -> None:
    import shutil

    for path in folder.glob(pattern):
        shutil.rmtree(path)


def test_a_qat_run_with_everything_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(resume: str | None = None) -> Trainer:
        model = Float2QAT(qat_mode="with_bn")(Net())
        plugins = [
            ExponentialMovingAverage(0.9, 1),
            FreezeModule([["body"]], [6], "step"),
            Validation(HELD, model_convert_pipeline=[QAT2Quantize()]),
            Checkpoint(str(tmp_path), interval_by="step", save_interval=5, resume=resume),
        ]
        return train(model, plugins)

    whole = run()
    removed(tmp_path, "checkpoint-step-1[0-9]*")
    again = run("auto")
    assert again.ctx.position.global_step == 12
    for view in ("raw", "ema"):
        with whole.ctx.weights.showing(view), again.ctx.weights.showing(view):
            a, b = whole.ctx.model.state_dict(), again.ctx.model.state_dict()
            assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.ctx.latest == again.ctx.latest


def test_a_quantised_model_is_written_and_read_back(tmp_path: Path) -> None:
    model = Float2QAT()(Net())
    train(model, [])
    int8 = QAT2Quantize()(model)
    x = batches(1, seed=3)[0][0]
    saver = SaveTraced(str(tmp_path), (x,))
    saver.export_model(train_nothing(int8).ctx, "for the test")
    traced = torch.jit.load(saver.written[0])
    assert torch.equal(traced(x), int8(x))


def train_nothing(model: nn.Module) -> Trainer:
    """A trainer of a model that has nothing to train."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    return Trainer(model.eval(), optimizer, batches(1), nn.functional.cross_entropy)
