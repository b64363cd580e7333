"""Optimizers of other packages; ``tox -e optimizers`` installs them, and takes some minutes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import lion_pytorch
import prodigyopt
import pytest
import pytorch_optimizer
import schedulefree
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from optimizers import matrices, trial

sys.path.pop(0)

from hatbus.errors import SaveError
from hatbus_grad import Closure

Make = Callable[[nn.Module], Any]
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

NOT_RUN = {
    "adalomo": "makes its updates in backward, without step()",
    "lomo": "makes its updates in backward, without step()",
    "adahessian": "differentiates the gradients, which no plain backward lets it",
    "sophiah": "differentiates the gradients, which no plain backward lets it",
    "demo": "exchanges what it finds between processes",
    "distributedmuon": "exchanges what it finds between processes",
}
OBJECT = "state at 'state/0.weight/{}' is a pytorch_optimizer"
REFUSED = {"conda": OBJECT.format("projector"), "scalableshampoo": OBJECT.format("pre_conditioner")}
"""Whose state holds objects of the package, which no checkpoint without pickle can hold."""
WITH_CLOSURE = {"alig", "bsam", "lbfgs"}
BY_KIND = {"adago", "adamuon", "muon", "muonclip", "normuon"}
WITH_MODEL = {"adammini"}
FOR_MATRICES = {"spectralsphere"}
MORE: dict[str, dict[str, Any]] = {"bsam": {"num_data": 24}, "ranger21": {"num_iterations": 24}}


def of_package(name: str) -> Make:
    """An optimizer of pytorch-optimizer, given what it wants."""

    def make(model: nn.Module) -> Any:
        options = {"lr": 1e-3, **MORE.get(name, {})}
        given: Any = list(model.parameters())
        if name in WITH_MODEL:
            given = model
        if name in BY_KIND:
            kinds = [(True, [p for p in given if p.ndim == 2])]
            kinds += [(False, [p for p in given if p.ndim != 2])]
            given = [{"params": found, "use_muon": is_matrix} for is_matrix, found in kinds]
        return pytorch_optimizer.load_optimizer(name)(given, **options)

    return make


NAMES = [n for n in pytorch_optimizer.get_supported_optimizers() if n not in NOT_RUN]
WRAPPERS: dict[str, tuple[Make, list[object]]] = {
    "Lookahead": (
        lambda m: pytorch_optimizer.Lookahead(torch.optim.AdamW(m.parameters()), k=4),
        [],
    ),
    "Lookahead with momentum": (
        lambda m: pytorch_optimizer.Lookahead(
            torch.optim.SGD(m.parameters(), 0.01, momentum=0.9), k=4, pullback_momentum="pullback"
        ),
        [],
    ),
    "OrthoGrad": (lambda m: pytorch_optimizer.OrthoGrad(torch.optim.AdamW(m.parameters())), []),
    "ScheduleFreeWrapper": (
        lambda m: pytorch_optimizer.ScheduleFreeWrapper(torch.optim.SGD(m.parameters(), 0.01)),
        [],
    ),
    "TRAC": (lambda m: pytorch_optimizer.TRAC(torch.optim.AdamW(m.parameters())), []),
    "SAM": (
        lambda m: pytorch_optimizer.SAM(m.parameters(), torch.optim.SGD, lr=0.01, momentum=0.9),
        [Closure()],
    ),
}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in REFUSED])
def test_every_optimizer_of_pytorch_optimizer_goes_on_twice(tmp_path: Path, name: str) -> None:
    model = {"model": matrices} if name in FOR_MATRICES else {}
    trial(tmp_path, of_package(name), *([Closure()] if name in WITH_CLOSURE else []), **model)


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_of_pytorch_optimizer_goes_on_twice(tmp_path: Path, name: str) -> None:
    make, plugins = WRAPPERS[name]
    trial(tmp_path, make, *plugins)


@pytest.mark.parametrize("name", REFUSED)
def test_a_state_of_objects_is_refused_by_name_after_the_first_update(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(SaveError, match=f"cannot be saved: {REFUSED[name]}"):
        trial(tmp_path, of_package(name))


SCHEDULE_FREE = ["SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"]
SCHEDULE_FREE += ["AdamWScheduleFreeReference", "ScheduleFreeWrapper"]
SCHEDULE_FREE += ["SGDScheduleFreeClosure", "AdamWScheduleFreeClosure", "RAdamScheduleFreeClosure"]


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_schedulefree_goes_on_twice(tmp_path: Path, name: str) -> None:
    def make(model: nn.Module) -> Any:
        if name == "ScheduleFreeWrapper":
            return schedulefree.ScheduleFreeWrapper(torch.optim.SGD(model.parameters(), 0.01))
        more = {} if name.startswith("R") or "Reference" in name else {"warmup_steps": 5}
        return getattr(schedulefree, name)(model.parameters(), lr=0.01, **more)

    trial(tmp_path, make, *([Closure()] if name.endswith("Closure") else []))


PRODIGY: list[dict[str, Any]] = [{}, {"slice_p": 11}, {"beta3": 0.9, "growth_rate": 1.02}]


@pytest.mark.parametrize("options", PRODIGY, ids=str)
def test_prodigy_goes_on_twice(tmp_path: Path, options: dict[str, Any]) -> None:
    trial(tmp_path, lambda m: prodigyopt.Prodigy(m.parameters(), **options))


def test_lion_goes_on_twice(tmp_path: Path) -> None:
    trial(tmp_path, lambda m: lion_pytorch.Lion(m.parameters(), lr=1e-3, weight_decay=0.01))


@pytest.mark.parametrize("name", ["AdamW8bit", "Adam8bit", "Lion8bit", "AdamW", "Adagrad8bit"])
def test_bitsandbytes_goes_on_twice(tmp_path: Path, name: str) -> None:
    def wide() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 1024), nn.Tanh(), nn.Linear(1024, 1))

    kind = getattr(bitsandbytes.optim, name)
    trial(tmp_path, lambda m: kind(m.parameters(), lr=1e-3, min_8bit_size=1024), model=wide)


def test_enough_are_tried() -> None:
    assert len(NAMES) > 100
