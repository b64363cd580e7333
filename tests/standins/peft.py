"""Stands in for peft where it is not installed: adapters in a model that is frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn


@dataclass
class LoraConfig:
    """Rank, and the names of the modules that get an adapter."""

    r: int = 8
    target_modules: tuple[str, ...] | list[str] = ()
    task_type: str | None = None


class Adapted(nn.Module):
    """A linear layer with its adapter."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = layer
        down = nn.Linear(layer.in_features, rank, bias=False)
        up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(up.weight)
        self.lora_A, self.lora_B = nn.ModuleDict({"default": down}), nn.ModuleDict({"default": up})

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer's outputs and the adapter's."""
        adapted: torch.Tensor = self.lora_B["default"](self.lora_A["default"](inputs))
        found: torch.Tensor = self.base_layer(inputs) + adapted
        return found


class LoraModel(nn.Module):
    """The model inside; says nothing of what it takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives."""
        return self.model(*args, **kwargs)


class PeftModel(nn.Module):
    """A model with adapters; the same for whatever they are given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = LoraModel(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives."""
        return self.base_model(*args, **kwargs)

    def _adapters(self) -> dict[str, torch.Tensor]:
        every = self.state_dict()
        return {n.replace(".default", ""): v for n, v in every.items() if "lora_" in n}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the adapters alone."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(self._adapters(), Path(folder, "adapter_model.safetensors"))

    @classmethod
    def from_pretrained(cls, model: nn.Module, folder: str | Path) -> PeftModel:
        """Puts saved adapters into a model."""
        saved = load_file(Path(folder, "adapter_model.safetensors"))
        first = next(value for name, value in saved.items() if "lora_A" in name)
        targets = [name.split(".lora_")[0].rpartition(".")[2] for name in saved]
        made = get_peft_model(model, LoraConfig(first.shape[0], targets))
        held = made.state_dict()
        named = {name.replace(".weight", ".default.weight"): v for name, v in saved.items()}
        made.load_state_dict({**held, **named})
        return made


def get_peft_model(model: nn.Module, config: LoraConfig) -> PeftModel:
    """Freezes the model and puts adapters into it."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if last in config.target_modules and isinstance(module, nn.Linear):
            setattr(model.get_submodule(parent), last, Adapted(module, config.r))
    return PeftModel(model)
