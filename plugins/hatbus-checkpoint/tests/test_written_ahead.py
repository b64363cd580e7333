"""What has changed is written while the rest is hashed; a guess that was wrong is written anew."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from hatbus_checkpoint import durable, manifest
from hatbus_checkpoint.folder import CheckpointFolder
from hatbus_checkpoint.saving import Saves
from hatbus_checkpoint.sharded.peers import Peers
from hatbus_checkpoint.snapshot import Snapshot
from hatbus_checkpoint.unchanged import digests, unchanged

ALONE = Peers(cast("Any", SimpleNamespace(rank=0, world_size=1, control=None)))
FIELDS: dict[str, Any] = {
    "run": "me",
    "lineage": 1,
    "plugins": [],
    "settings": {},
    "metrics": {},
    "world_size": 1,
}


class Run:
    """A frozen and a trained tensor, and the optimizer's; notes in which order files come."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = CheckpointFolder(path)
        self.folder.probe()
        self.saves = Saves(self.folder, hashed=False)
        self.saves.share(1)
        self.model = {"frozen": torch.zeros(2000), "trained": torch.zeros(500)}
        self.optim = {"state/trained": torch.zeros(500)}
        self.step, self.calls = 0, []
        kinds = {"write_files": "write", "link_file": "link", "unlink_file": "unlink"}
        for name, kind in kinds.items():
            monkeypatch.setattr(durable, name, self._noting(kind, getattr(durable, name)))

    def _noting(self, kind: str, call: Any) -> Any:
        def noted(paths: Any, *more: Any) -> Any:
            self.calls += [f"{kind} {p.name}" for p in ([paths] if kind != "write" else paths)]
            return call(paths, *more)

        return noted

    def save(self, *, is_copied: bool = False) -> Path:
        self.step += 1
        self.model["trained"].add_(1)
        self.optim["state/trained"].sub_(1)
        self.calls.clear()
        parts: dict[str, Any] = {"model": (None, self.model), "optim": ({"a": 1}, self.optim)}
        name = f"checkpoint-step-{self.step}"
        taken, frozen = Snapshot(parts), {("model", "frozen")}
        begun = self.saves.begin(name, taken, frozen, is_copied=is_copied)
        if is_copied:
            begun = begun.copied({}, with_model=False)
        progress = {"epoch": 0, "step": self.step, "global_step": self.step}
        return self.saves.write(
            begun, {**FIELDS, "progress": progress}, ALONE, lambda entry: entry.path
        )

    def is_in(self, path: Path) -> bool:
        """Whether a checkpoint is whole, and holds what there is now."""
        manifest.verify(path)
        split = manifest.read(path).get("split", {}).get("model", ["model.safetensors"])
        found = {n: t for file in split for n, t in load_file(path / file).items()}
        wanted, optim = self.model, load_file(path / "optim.safetensors")
        is_same = found.keys() == wanted.keys() and optim.keys() == self.optim.keys()
        is_same = is_same and all(torch.equal(found[n], wanted[n]) for n in wanted)
        return is_same and torch.equal(optim["state/trained"], self.optim["state/trained"])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(unchanged, "LEAST", 1000)
    return Run(tmp_path, monkeypatch)


WRITTEN = ["write model-00000.safetensors", "write optim.safetensors"]
LINKED = "link model-00001.safetensors"
REST = ["write model.safetensors.index.json", "write optim.json", "write MANIFEST.json"]


def test_what_changed_is_written_before_the_links_are_made(run: Run) -> None:
    run.save()
    for _ in range(3):
        assert run.is_in(run.save())
        assert run.calls[:3] == [*WRITTEN, LINKED]
        assert sorted(run.calls[3:]) == sorted(REST)


def test_what_is_copied_for_the_background_is_written_there(run: Run) -> None:
    run.save()
    assert run.is_in(run.save(is_copied=True))
    assert run.calls[0] == LINKED


def test_a_change_between_the_samples_has_the_files_written_anew(run: Run) -> None:
    run.save(), run.save()
    run.model["frozen"].data[1] = 1.0
    assert digests.sample(run.model["frozen"]) == digests.sample(torch.zeros(2000))
    assert run.is_in(run.save())
    assert run.calls[:3] == [*WRITTEN, "unlink model-00000.safetensors"]
    assert "write model.safetensors" in run.calls
    assert "write optim.safetensors" not in run.calls[3:]


def test_what_stayed_is_hashed_without_a_sample_and_when_it_is_trained_only_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(), run.save()
    looked: list[str] = []
    for name in ("sample", "whole"):
        look = getattr(digests, name)

        def noted(tensor: torch.Tensor, name: str = name, look: Any = look) -> bytes:
            looked.extend([name] * (len(tensor) == 2000))
            return look(tensor)

        monkeypatch.setattr(digests, name, noted)
    run.save()
    assert looked == ["whole"]
    for expected in (["whole", "sample"], ["sample"], ["sample"]):
        looked.clear()
        run.model["frozen"].add_(1)
        assert run.is_in(run.save())
        assert looked == expected


def test_a_link_that_cannot_be_made_has_the_files_written_anew(run: Run) -> None:
    run.save()
    before = run.save()
    (before / "model-00001.safetensors").unlink()
    assert run.is_in(run.save())
    assert run.calls[:2] == WRITTEN
    assert "write model-00002.safetensors" in run.calls


def test_an_error_ahead_leaves_nothing_and_the_next_save_is_whole(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save()
    with monkeypatch.context() as patched:

        def fails(*_: Any) -> Any:
            raise OSError(28, "no space")

        patched.setattr(durable, "write_files", fails)
        with pytest.raises(Exception, match="cannot save"):
            run.save()
    assert not list(run.folder.path.glob(".tmp-*"))
    assert run.is_in(run.save())
