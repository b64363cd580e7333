"""A checkpoint names tensors as the model was built, whatever ``torch.compile`` has wrapped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hatbus import Trainer
from hatbus.callbacks import Checkpoint, ExponentialMovingAverage
from hatbus.cli import main

torch.set_num_threads(1)


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    if kind == "part":
        model[0] = torch.compile(model[0], backend="eager")
    return torch.compile(model, backend="eager") if kind == "whole" else model


def fitted(path: Path, kind: str, epochs: int, **options: Any) -> nn.Module:
    model = model_of(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    checkpoint = Checkpoint(str(path), resume="auto", strict_match=True, **options)
    plugins = {"ema": ExponentialMovingAverage(0.5, 0), "checkpoint": checkpoint}
    chance = torch.Generator().manual_seed(1)
    data = [(torch.randn(4, 3, generator=chance), torch.zeros(4, 1)) for _ in range(3)]
    Trainer(model, optimizer, data, nn.functional.mse_loss, plugins).fit(num_epochs=epochs)
    return model


def stems(path: Path) -> list[str]:
    newest = max(path.glob("checkpoint-epoch-*"))
    return sorted(load_file(newest / "model.safetensors"))


@pytest.mark.parametrize(
    ("one", "other"), [("plain", "part"), ("part", "plain"), ("whole", "part")]
)
def test_a_run_goes_on_with_other_parts_compiled(tmp_path: Path, one: str, other: str) -> None:
    expected = fitted(tmp_path / "a", "plain", 2)
    fitted(tmp_path / "b", one, 1)
    assert stems(tmp_path / "b") == sorted(model_of("plain").state_dict())
    found = fitted(tmp_path / "b", other, 2)
    for mine, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        assert mine.equal(theirs)


def test_the_export_of_a_compiled_model_has_the_plain_names(tmp_path: Path) -> None:
    fitted(tmp_path / "a", "part", 1)
    for number, more in enumerate(([], ["--weights", "ema"])):
        target = tmp_path / f"{number}.safetensors"
        assert main(["export", str(tmp_path / "a"), "--single", str(target), *more]) == 0
        assert sorted(load_file(target)) == sorted(model_of("plain").state_dict())
    model_of("plain").load_state_dict(load_file(target))


def test_a_checkpoint_with_the_wrappers_names_is_read(tmp_path: Path) -> None:
    from hatbus_checkpoint import manifest
    from hatbus_checkpoint.folder import CheckpointFolder

    expected = fitted(tmp_path / "a", "plain", 2)
    fitted(tmp_path / "b", "plain", 1)
    entry = CheckpointFolder(tmp_path / "b").latest()
    assert entry is not None
    path = entry.path

    def renamed(text: str) -> str:
        return text.replace('"0.weight"', '"0._orig_mod.weight"').replace(
            '"0.bias"', '"0._orig_mod.bias"'
        )

    for name in ("optim.json", "plugins/ema.json"):
        (path / name).write_text(renamed((path / name).read_text()))
    tensors = load_file(path / "model.safetensors")
    older = {renamed(json.dumps(name)).strip('"'): value for name, value in tensors.items()}
    save_file(older, path / "model.safetensors")
    import hashlib

    fields = json.loads((path / "MANIFEST.json").read_text())
    for name, file in fields["files"].items():
        raw = (path / name).read_bytes()
        file |= {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    fields["content"] = manifest.content_hash(fields["files"])
    fields.pop("sha256"), fields.pop("format")
    (path / "MANIFEST.json").write_bytes(manifest.write(fields))
    for kind in ("part", "plain"):
        found = fitted(tmp_path / "b", kind, 2, save_interval=None, save_on_train_end=False)
        for mine, theirs in zip(found.parameters(), expected.parameters(), strict=True):
            assert mine.equal(theirs)


def test_a_compiled_model_is_told_the_task() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, inputs: torch.Tensor, task: str | None = None) -> Any:
            return self.one(inputs) if task == "one" else self.two(inputs)

    def trained(*, compiled: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model: Any = TwoHeads()
        given = torch.compile(model, backend="eager") if compiled else model
        data = {name: [(torch.ones(2, 3), torch.ones(2, 1))] * 3 for name in ("one", "two")}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Trainer(given, optimizer, data, nn.functional.mse_loss).fit(num_epochs=1)
        return [one.detach() for one in model.parameters()]

    for mine, theirs in zip(trained(compiled=True), trained(compiled=False), strict=True):
        assert mine.equal(theirs)
