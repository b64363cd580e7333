"""Pairs with models of other libraries, and with what torch's can be made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from works_with.pair import Pair
from works_with.small import STEPS, Plain, Stack

KIND = "Models"


def of(library: str, name: str, parts: Callable[[], dict[str, Any]], **more: Any) -> Pair:
    return Pair(KIND, library, name, lambda _: parts(), **more)


class Holds(Plain):
    """A model with one buffer more, which changes with every forward pass."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("held", value)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training and self.held.dtype.is_floating_point and self.held.element_size() > 1:
            self.held.add_(1)
        return super().forward(inputs)


class Recurrent(nn.Module):
    """An LSTM, attention and normalised weights."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.LSTM(1, 8, num_layers=2, dropout=0.1, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(8, 1))
        self.other = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows, _ = self.rows(inputs[..., None])
        rows, _ = self.attention(rows, rows, rows)
        return self.head(rows.mean(1)) + self.other(rows[:, -1])


def compiled_part() -> nn.Module:
    model = Stack()
    model[4] = torch.compile(model[4], backend="eager")
    return model


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 1))
    model[2].weight = model[0].weight
    return model


def with_sgd(model: nn.Module) -> dict[str, Any]:
    return {"model": model, "make": lambda m: torch.optim.SGD(m.parameters(), 0.01, momentum=0.9)}


def of_torch() -> list[Pair]:
    """Compiled, recurrent, lazy, and with tensors of every kind."""
    waves = torch.randn(4, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
    held = {
        "a buffer of one element with a stride of its own": torch.ones(4, 4)[1:2, ::2],
        "a complex buffer": waves,
        "a conjugated buffer": waves.conj(),
        "a buffer of float8_e4m3fnuz": torch.ones(4).to(torch.float8_e4m3fnuz),
        "a buffer of bfloat16": torch.ones(4, dtype=torch.bfloat16),
        "a scalar buffer": torch.zeros(()),
    }
    sparse, expanded = torch.eye(3).to_sparse(), torch.ones(1).expand(4)
    eager = {"backend": "eager"}
    return [
        of("torch", "LSTM, attention, weight_norm, spectral_norm", lambda: {"model": Recurrent()}),
        of("torch", "tied weights", lambda: {"model": tied()}),
        *(
            of("torch", name, lambda v=value: with_sgd(Holds(v.clone())))
            for name, value in held.items()
        ),
        of("torch", "compile=... of the trainer", lambda: {"model": Stack(), "compile": eager}),
        of("torch", "torch.compile(model)", lambda: {"model": torch.compile(Stack(), **eager)}),
        of("torch", "torch.compile of a part", lambda: {"model": compiled_part()}),
        of(
            "torch",
            "a sparse buffer",
            lambda: {"model": Holds(sparse)},
            refused="the model cannot be saved: .*'held'",
            note="safetensors has no sparse tensors: register its indices and values",
        ),
        of(
            "torch",
            "an expanded buffer",
            lambda: {"model": Holds(expanded)},
            refused="several elements of tensor 'held' are one",
            note="torch loads none: register .contiguous()",
        ),
    ]


def tokens() -> list[dict[str, torch.Tensor]]:
    """Batches as a tokenizer and a collate function make them."""
    chance = torch.Generator().manual_seed(1)
    found = []
    for _ in range(STEPS):
        ids = torch.randint(2, 40, (2, 8), generator=chance)
        labels = ids.sum(1) % 2
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return found


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=40, intermediate_size=16, max_position_embeddings=16, **small)
    return BertForSequenceClassification(config).train()


def gpt() -> dict[str, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    data = [{**one, "labels": one["input_ids"]} for one in tokens()]
    return {"model": GPT2LMHeadModel(config).train(), "data": data, "loss": None}


def lora() -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model

    wanted = LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.1)
    return {"model": get_peft_model(bert(), wanted), "data": tokens(), "loss": None}


def images(size: int = 32, classes: int = 4) -> list[Any]:
    chance = torch.Generator().manual_seed(1)
    return [
        (torch.randn(2, 3, size, size, generator=chance), torch.arange(2) % classes)
        for _ in range(STEPS)
    ]


def of_timm(name: str) -> dict[str, Any]:
    import timm

    model = timm.create_model(name, num_classes=4, drop_rate=0.1)
    return {"model": model, "data": images(96), "loss": nn.functional.cross_entropy}


def mobilenet() -> dict[str, Any]:
    from torchvision.models import mobilenet_v3_small

    model = mobilenet_v3_small(num_classes=4)
    return {"model": model, "data": images(), "loss": nn.functional.cross_entropy}


class Detector(nn.Module):
    """Gives a detector of torchvision its images and targets."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.detection import RetinaNet
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 4, 1))
        trunk.out_channels = 8
        anchors = AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),))
        self.net = RetinaNet(trunk, 3, min_size=64, max_size=64, anchor_generator=anchors)

    def forward(self, batch: Any) -> Any:
        losses = self.net(*batch)
        return {f"loss_{name}": value for name, value in losses.items()}


def detection() -> dict[str, Any]:
    boxes = torch.tensor([[4.0, 4.0, 30.0, 30.0], [20.0, 20.0, 60.0, 60.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])}] * 2
    data = [(list(inputs), targets) for inputs, _ in images(64)]
    return {"model": Detector(), "data": data, "loss": None}


PAIRS = [
    *of_torch(),
    of(
        "transformers",
        "BertForSequenceClassification",
        lambda: {"model": bert(), "data": tokens(), "loss": None},
    ),
    of("transformers", "GPT2LMHeadModel", gpt),
    of("peft", "LoRA of a BERT", lora),
    of("timm", "test_vit", lambda: of_timm("test_vit")),
    of("timm", "test_efficientnet", lambda: of_timm("test_efficientnet")),
    of("torchvision", "mobilenet_v3_small", mobilenet),
    of("torchvision", "RetinaNet", detection, note="in a module that names its losses `loss_...`"),
]
