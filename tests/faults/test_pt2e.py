"""Stages on an exported graph, by torchao: what torch names as the way after its eager mode."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hatbus import Trainer, hookimpl
from hatbus.callbacks import Validation
from hatbus.errors import HatbusError
from hatbus_quantization import Float2QAT, QAT2Quantize

torch.set_num_threads(1)


def has_torchao() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchao  # noqa: F401
        except ImportError:
            return False
    return True


def batches() -> list[tuple[Tensor, Tensor]]:
    inputs = torch.randn(4, 8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return [(x, (x.mean((1, 2, 3)) > 0).long()) for x in inputs]


def net() -> nn.Module:
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.skipif(has_torchao(), reason="torchao is here")
def test_without_torchao_the_message_says_what_to_install() -> None:
    with pytest.raises(HatbusError, match=r"'pt2e' needs torchao.*pip install torchao, or take"):
        Float2QAT("pt2e", example_inputs=(batches()[0][0],))(net())


@pytest.mark.skipif(not has_torchao(), reason="needs torchao")
@pytest.mark.filterwarnings("ignore")
def test_a_graph_trains_and_its_validation_is_torchaos_own_convert() -> None:
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    seen: list[Tensor] = []

    class Outputs:
        @hookimpl
        def on_loop_begin(self) -> None:
            seen.clear()

        @hookimpl
        def on_batch_end(self, model_outs: Tensor) -> None:
            seen.append(model_outs)

    data = batches()
    model: Any = Float2QAT("pt2e", example_inputs=(data[0][0],))(net())
    validation = Validation(data, None, [Outputs()], model_convert_pipeline=[QAT2Quantize("pt2e")])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Trainer(model, optimizer, data, nn.functional.cross_entropy, [validation]).fit(num_epochs=2)
    theirs = copy.deepcopy(model)
    move_exported_model_to_eval(theirs)
    int8 = convert_pt2e(theirs)
    with torch.no_grad():
        assert all(torch.equal(one, int8(x)) for one, (x, _) in zip(seen, data, strict=True))
