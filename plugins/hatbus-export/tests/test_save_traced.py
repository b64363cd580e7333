"""SaveTraced: its files run elsewhere, and the live model notices nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from hatbus import Trainer, hookimpl
from hatbus.errors import JobError, SaveError
from hatbus_export.save_traced import SaveTraced

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.load` is:DeprecationWarning")


class Net(nn.Module):
    def __init__(self, *, annotate: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 1)
        self.annotate, self.calls = annotate, 0

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        out = self.head(self.body(x))
        if self.annotate:
            out.annotation = {"unit": "m"}
        return {"out": out, "twice": out * 2}


X = torch.linspace(-1, 1, 15).reshape(5, 3)


def run(*plugins: object, model: nn.Module | None = None, fail: bool = False) -> Trainer:
    model = model or Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(outs: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        if fail:
            raise RuntimeError("broken loss")
        return (outs["out"] - target).square().mean()

    trainer = Trainer(model, optimizer, [(X, torch.ones(5, 1))] * 3, loss, list(plugins))
    trainer.fit(num_epochs=1)
    return trainer


def outputs(model: nn.Module) -> torch.Tensor:
    modes = [(m, m.training) for m in model.modules()]
    with torch.no_grad():
        found = model.eval()(X)["out"]
    for module, mode in modes:
        module.training = mode
    return found


READERS = {
    "pt": "model = torch.jit.load(path)",
    "pt2": "model = torch.export.load(path).module()",
}


@pytest.mark.parametrize("suffix", READERS)
def test_a_fresh_process_without_hatbus_gets_the_same_outputs(tmp_path: Path, suffix: str) -> None:
    save = SaveTraced(str(tmp_path / "deploy"), (X,), formats=(suffix,), save_hash=False)
    trainer = run(save)
    expected = outputs(trainer.ctx.model)
    torch.save((X, expected), tmp_path / "expected.pt")
    code = f"""
import sys
class Nobody:
    def find_spec(self, name, path=None, target=None):
        assert not name.startswith("hatbus"), name
sys.meta_path.insert(0, Nobody())
import torch
path = {str(tmp_path / "deploy" / f"deploy-checkpoint-last.{suffix}")!r}
{READERS[suffix]}
x, expected = torch.load({str(tmp_path / "expected.pt")!r})
assert torch.equal(model(x)["out"], expected), (model(x)["out"], expected)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_live_model_is_untouched(tmp_path: Path) -> None:
    class Before:
        @hookimpl
        def on_step_end(self, model: nn.Module) -> None:
            self.state = {n: v.clone() for n, v in model.state_dict().items()}
            self.grads = [p.grad.clone() for p in model.parameters()]
            self.modes = [m.training for m in model.modules()]
            self.random = torch.get_rng_state()

    before = Before()
    trainer = run(
        SaveTraced(str(tmp_path), (X,), forward_before_trace=True, formats=("pt", "pt2")), before
    )
    model = trainer.ctx.model
    assert all(torch.equal(v, before.state[n]) for n, v in model.state_dict().items())
    assert all(
        torch.equal(p.grad, g) for p, g in zip(model.parameters(), before.grads, strict=True)
    )
    assert [m.training for m in model.modules()] == before.modes
    assert all(before.modes)
    assert torch.equal(torch.get_rng_state(), before.random)
    assert model.calls == 3
    assert model.head.weight.requires_grad


def test_the_name_holds_prefix_and_hash_of_the_content(tmp_path: Path) -> None:
    run(SaveTraced(str(tmp_path), (X,), name_prefix="float-"))
    (path,) = tmp_path.iterdir()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert path.name == f"float-deploy-checkpoint-last-{digest}.pt"


def test_a_dict_is_passed_as_keywords(tmp_path: Path) -> None:
    run(SaveTraced(str(tmp_path), {"x": X}, save_hash=False, formats=["pt", "pt2"]))
    assert {p.name for p in tmp_path.iterdir()} == {
        "deploy-checkpoint-last.pt",
        "deploy-checkpoint-last.pt2",
    }
    assert torch.jit.load(tmp_path / "deploy-checkpoint-last.pt")(x=X)["out"].shape == (5, 1)


def test_a_failed_run_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken loss"):
        run(SaveTraced(str(tmp_path), (X,)), fail=True)
    assert not list(tmp_path.iterdir())


def test_a_failing_trace_leaves_no_file(tmp_path: Path) -> None:
    class Breaks:
        @hookimpl
        def on_epoch_end(self, model: Net) -> None:
            model.head = nn.Linear(7, 1)

    with pytest.raises(RuntimeError):
        run(SaveTraced(str(tmp_path), (X,)), Breaks())
    assert not list(tmp_path.iterdir())


def test_a_later_export_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    class Now:
        @hookimpl
        def on_step_end(self, ctx: object) -> None:
            assert ctx.emit.export_model(ctx, "for the test").exists()

    run(SaveTraced(str(tmp_path), (X,)), Now())
    assert len(list(tmp_path.iterdir())) == 1


def test_a_weight_view_can_be_written(tmp_path: Path) -> None:
    class Zeros:
        @hookimpl
        def on_loop_begin(self, ctx: object) -> None:
            self.model = ctx.model
            ctx.weights.add("ema", self.zeros)

        @contextmanager
        def zeros(self) -> Iterator[None]:
            kept = self.model.head.bias.data
            self.model.head.bias.data = torch.full((1,), 7.0)
            yield
            self.model.head.bias.data = kept

    trainer = run(Zeros(), SaveTraced(str(tmp_path), (X,), save_hash=False, weights="ema"))
    written = torch.jit.load(tmp_path / "deploy-checkpoint-last.pt")
    assert written.head.bias.item() == 7
    assert trainer.ctx.model.head.bias.item() != 7


def test_annotations_are_written_beside_the_model(tmp_path: Path) -> None:
    save = SaveTraced(str(tmp_path), (X,), save_hash=False, forward_before_trace=True)
    run(save, model=Net(annotate=True))
    extra = {"annotations.json": ""}
    torch.jit.load(tmp_path / "deploy-checkpoint-last.pt", _extra_files=extra)
    assert json.loads(extra["annotations.json"]) == {"out": {"unit": "m"}}


def test_a_missing_annotation_is_named_when_it_may_not_miss(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="outputs 'twice' have no 'annotation'"):
        run(SaveTraced(str(tmp_path), (X,), allow_anno_miss=False), model=Net(annotate=True))


def test_a_model_that_cannot_be_copied_is_an_error_that_says_so(tmp_path: Path) -> None:
    class Keeps(Net):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            self.last = super().forward(x)
            return self.last

    with pytest.raises(SaveError, match="cannot be copied"):
        run(SaveTraced(str(tmp_path), (X,)), model=Keeps())


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="file"):
        run(SaveTraced(str(tmp_path / "file"), (X,)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trace_inputs": X}, "trace_inputs is a Tensor"),
        ({"formats": ["onnx"]}, "formats is 'onnx'; accepted: 'pt'"),
        ({"formats": []}, "formats"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(JobError, match=words):
        SaveTraced(**{"save_dir": "x", "trace_inputs": (X,), **options})


def test_weights_that_the_run_does_not_have_are_refused_before_it_trains(tmp_path: Path) -> None:
    model = Net()
    with pytest.raises(JobError, match="weights is 'emma'; accepted: 'raw'"):
        run(SaveTraced(str(tmp_path), (X,), weights="emma"), model=model)
    assert model.calls == 0


@pytest.mark.parametrize("part", ["whole", "inner"])
@pytest.mark.parametrize("suffix", ["pt", "pt2"])
def test_a_model_that_was_compiled_is_written_without_its_wrapper(
    tmp_path: Path, suffix: str, part: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    if part == "inner":
        model[0] = torch.compile(model[0], backend="eager")
    wrapped = torch.compile(model, backend="eager") if part == "whole" else model
    save = SaveTraced(str(tmp_path), (torch.ones(2, 3),), formats=[suffix])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(torch.ones(2, 3), torch.ones(2, 1))] * 2
    Trainer(wrapped, optimizer, data, nn.functional.mse_loss, [save]).fit(num_steps=2)
    path, inputs = str(save.written[0]), torch.randn(2, 3)
    loaded = torch.jit.load(path) if suffix == "pt" else torch.export.load(path).module()
    with torch.no_grad():
        assert torch.allclose(loaded(inputs), model(inputs), atol=1e-6)


class Counts:
    """How many steps there were."""

    steps = 0

    @hookimpl
    def on_step_end(self) -> None:
        self.steps += 1


class Branches(Net):
    """Can be traced, but has no graph."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().forward(x if x.sum() > 0 else x + 1)


class Talks(Net):
    """Gives what TorchScript has not."""

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {**super().forward(x), "kind": "cat"}


class Pair(NamedTuple):
    out: torch.Tensor
    twice: torch.Tensor


class Named(Net):
    """Gives what ``torch.export`` makes a graph of, and cannot write."""

    def forward(self, x: torch.Tensor) -> Any:
        return Pair(**super().forward(x))


class Heads(Net):
    def forward(self, x: torch.Tensor, task: str = "a") -> dict[str, torch.Tensor]:
        return super().forward(x) if task else {}


@pytest.mark.parametrize(
    ("model", "inputs", "formats", "words"),
    [
        (
            Named,
            (X,),
            ["pt2"],
            r"Named cannot be written as 'pt2' with .*NotImplementedError: Can't",
        ),
        (Talks, (X,), ["pt2"], r"Talks cannot be written as 'pt2' with .*: output 'cat' is a text"),
        (
            Net,
            (X[:, :2],),
            ["pt"],
            r"Net fails on trace_inputs \(float32\[5, 2\]\): RuntimeError: mat1",
        ),
        (
            Net,
            (X, 1, 2),
            ["pt"],
            r"trace_inputs is a tuple of 3, which Net.forward\(x: .*does not take",
        ),
        (
            Net,
            {"y": X[:, :2]},
            ["pt2"],
            r"Net fails on trace_inputs \(\{'y': float32\[5, 2\]\}\): ",
        ),
        (Talks, (X,), ["pt"], r"Talks cannot be written as 'pt' with trace_inputs \(float32\[5, 3"),
        (Branches, (X,), ["pt", "pt2"], r"Branches cannot be written as 'pt2' with trace_inputs"),
        (
            Heads,
            (X, "a"),
            ["pt"],
            r"Heads cannot be written as 'pt' with .*float32\[5, 3\], 'a'\): ",
        ),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_first_step(
    tmp_path: Path, model: type[Net], inputs: Any, formats: list[str], words: str
) -> None:
    counts = Counts()
    with pytest.raises(JobError, match=f"^save_traced: {words}") as caught:
        run(SaveTraced(str(tmp_path), inputs, formats=formats), counts, model=model())
    assert counts.steps == 0
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_trial_leaves_training_as_it_is(tmp_path: Path) -> None:
    plain, tried = run(), run(SaveTraced(str(tmp_path), (X,), formats=["pt", "pt2"]))
    for one, other in zip(plain.ctx.model.parameters(), tried.ctx.model.parameters(), strict=True):
        assert torch.equal(one, other)


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
from hatbus.errors import SaveError
from test_save_traced import SaveTraced, Counts, nn, run

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 100_000)
    def forward(self, x):
        return {"out": self.body(x).mean(1, keepdim=True)}

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file of this size is as one on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    run(SaveTraced(sys.argv[2], (torch.ones(5, 3),), formats=[sys.argv[3]]), model=Net())
except SaveError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", READERS)
def test_a_disk_that_is_full_is_an_error_that_names_the_folder(tmp_path: Path, suffix: str) -> None:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-W", "ignore", "-c", FULL, here, str(tmp_path), suffix]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"save_traced: cannot write in {str(tmp_path)!r}: [Errno 27]")
    assert not list(tmp_path.iterdir())
