"""What a model is called with: by keywords where its forward takes all of a mapping's keys."""

from __future__ import annotations

import inspect
from collections import UserDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hatbus import BatchProcessor, Trainer, hookimpl
from hatbus.callbacks import Validation
from hatbus.cli import main
from hatbus.errors import JobError


class ByName(nn.Module):
    """As a Transformers model: columns by name, and an output with its loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, 2)

    def forward(self, inputs: Any = None, scale: Any = None, labels: Any = None) -> Any:
        logits = self.head(inputs if scale is None else inputs * scale)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Whole(nn.Module):
    """One that takes the mapping itself; subclasses name their one argument otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ByName()
        self.got: list[type] = []

    def forward(self, batch: Any) -> Any:
        self.got.append(type(batch))
        return self.inner(batch["inputs"], labels=batch["labels"])


class WholeWithMore(Whole):
    def forward(self, batch: Any, mask: Any = None, **_: Any) -> Any:
        return super().forward(batch)


class PassingOn(nn.Module):
    """A wrapper that says nothing of its own, as those of PEFT."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)


class Rows(Mapping[Any, Any]):
    """A mapping whose iteration gives rows, as a TensorDict's."""

    def __init__(self, columns: dict[str, torch.Tensor]) -> None:
        self.columns = columns

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.columns[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.columns["inputs"])

    def __len__(self) -> int:
        return 4


def columns(**more: Any) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(1)
    inputs = torch.randn(4, 3, generator=chance)
    return {"inputs": inputs, "labels": (inputs[:, 0] > 0).long(), **more}


def fit(model: nn.Module, batch: Any, plugins: Any = (), **options: Any) -> Trainer:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = Trainer(model, optimizer, [batch] * 3, plugins=plugins, **options)
    trainer.fit(num_epochs=1)
    return trainer


def by_hand() -> torch.Tensor:
    model = ByName()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(**columns())["loss"].backward()
        optimizer.step()
    return model.head.weight.detach()


MODELS = {
    "by name": ByName,
    "a wrapper": lambda: PassingOn(ByName()),
    "two wrappers": lambda: PassingOn(PassingOn(ByName())),
    "whole": Whole,
    "whole and more": WholeWithMore,
    "a wrapper of a whole": lambda: PassingOn(Whole()),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_mapping_goes_in_as_the_forward_takes_it(name: str, kind: Any) -> None:
    model = MODELS[name]()
    fit(model, kind(columns()))
    (weight,) = (p for n, p in model.named_parameters() if n.endswith("head.weight"))
    assert weight.equal(by_hand())


def test_a_mapping_of_rows_stays_whole() -> None:
    model = Whole()
    fit(model, Rows(columns()))
    assert model.got == [Rows] * 3


def test_keys_that_a_batch_changes_are_looked_at_anew() -> None:
    model = ByName()
    with_scale = columns(scale=torch.full((4, 3), 2.0))
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.1), [columns(), with_scale])
    seen: list[float] = []

    class Losses:
        @hookimpl
        def on_batch_end(self, losses: dict[str, torch.Tensor]) -> None:
            seen.append(float(losses["loss"].detach()))

    trainer.bus.register(Losses())
    trainer.fit(num_epochs=2)
    assert len(set(seen)) == 4


def test_a_column_that_the_forward_does_not_take_is_named() -> None:
    said = "ByName.forward takes 'inputs', 'labels' of a batch, but not 'idx'; leave that out"
    with pytest.raises(JobError, match=said):
        fit(ByName(), columns(idx=torch.arange(4)))


def test_whether_by_keywords_can_be_said() -> None:
    class Open(ByName):
        def forward(self, *_: Any, **kwargs: Any) -> Any:
            return super().forward(**kwargs)

    model = Open()
    model.more = nn.Linear(1, 1)  # two parts: nobody can know what it passes on
    fit(model, columns(), batch_processor=BatchProcessor(model_takes="keywords"))
    assert model.head.weight.equal(by_hand())

    class Inputs(Whole):
        def forward(self, inputs: Any, labels: Any = None) -> Any:
            return super().forward(inputs)

    whole = Inputs()
    fit(whole, columns(), batch_processor=BatchProcessor(model_takes="argument"))
    assert whole.inner.head.weight.equal(by_hand())
    with pytest.raises(JobError, match=r"model_takes is 'keyword'; accepted: .* mean 'keywords'"):
        BatchProcessor(model_takes="keyword")


def test_inputs_of_a_pair_go_in_by_keywords_too() -> None:
    model = ByName()
    batch = columns()
    labels = batch.pop("labels")
    loss = lambda outs, target: nn.functional.cross_entropy(outs["logits"], target)  # noqa: E731
    fit(model, (batch, labels), loss=loss)
    assert model.head.weight.equal(by_hand())


def test_a_model_by_task_gets_keywords_and_its_task() -> None:
    class Tasks(ByName):
        def forward(self, inputs: Any, labels: Any = None, *, task: str) -> Any:
            tasks.append(task)
            return super().forward(inputs, labels=labels)

    tasks: list[str] = []
    model = Tasks()
    data = {"a": [columns()], "b": [columns()]}
    Trainer(model, torch.optim.SGD(model.parameters(), 0.1), data).fit(num_epochs=1)
    assert tasks == ["a", "b"]


class CrossEntropy:
    """A plugin that computes the loss of pairs."""

    @hookimpl
    def compute_loss(self, ctx: Any) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.cross_entropy(ctx.model_outs, ctx.batch[1])}


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_a_plugin_that_computes_the_loss_needs_no_other() -> None:
    pair = tuple(columns().values())
    plain, model = linear(), linear()
    whole = fit(plain, pair, [Validation([pair])], loss=nn.functional.cross_entropy)
    trainer = fit(model, pair, [CrossEntropy(), Validation([pair])])
    assert model.weight.equal(plain.weight)
    assert trainer.ctx.latest["val/loss"] == whole.ctx.latest["val/loss"]
    assert trainer.validate() == whole.validate()
    for batch in (pair, pair[0], [pair[0]]):
        (out,) = trainer.predict([batch])
        assert out.equal(model(pair[0]))


def test_a_model_of_whole_batches_beside_such_a_plugin_says_so() -> None:
    class Pairs(nn.Linear):
        def forward(self, batch: Any) -> Any:
            return super().forward(batch[0])

    pair = tuple(columns().values())
    model, plain = Pairs(3, 2), linear()
    model.load_state_dict(plain.state_dict())
    fit(model, pair, [CrossEntropy()], batch_processor=BatchProcessor(model_takes="batch"))
    fit(plain, pair, loss=nn.functional.cross_entropy)
    assert model.weight.equal(plain.weight)


def test_predictions_of_mappings_need_no_labels() -> None:
    model = ByName()
    trainer = fit(model, columns())
    batch = columns()
    (with_labels,), (without,) = (
        list(trainer.predict([one])) for one in (batch, {"inputs": batch["inputs"]})
    )
    assert with_labels["logits"].equal(without["logits"])
    assert without.keys() == {"logits"}


TRAIN = f"""
from typing import Any
import torch
from torch import nn

{inspect.getsource(ByName)}
{inspect.getsource(columns)}
def build():
    model = ByName()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return {{"model": model, "optimizer": optimizer, "data": [columns()] * 3}}
"""


def test_it_trains_and_validates_from_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(TRAIN)
    Path("job.toml").write_text(
        '[run]\nentry = "train.py:build"\nnum_epochs = 1\n'
        '[plugins.validation]\ndata_loader = "@data"\n'
    )
    assert main(["run", "job.toml"]) == 0
    assert "val/loss" in capsys.readouterr().out
