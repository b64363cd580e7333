"""Stands in for transformers where it is not installed: a model with the same contract.

Columns come by name, the loss is computed where there are labels, and the outputs are a mapping
with attributes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn


class ModelOutput(OrderedDict[str, Any]):
    """What a model returns; what is None is left out."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class BertConfig:
    """The sizes of a model."""

    def __init__(self, **sizes: Any) -> None:
        self.sizes = sizes


class Layer(nn.Module):
    """Something with a part named ``query``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query = nn.Linear(size, size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Same shape: batch, tokens, size."""
        return hidden + torch.tanh(self.query(hidden))


class BertForSequenceClassification(nn.Module):
    """Tokens in, logits of two classes out."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size = config.sizes["hidden_size"]
        self.config = config
        self.embeddings = nn.Embedding(config.sizes["vocab_size"], size)
        layers = (Layer(size) for _ in range(config.sizes["num_hidden_layers"]))
        self.encoder = nn.ModuleList(layers)
        self.classifier = nn.Linear(size, 2)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """The loss, if there are labels, and the logits."""
        assert input_ids is not None
        hidden = self.embeddings(input_ids)
        for layer in self.encoder:
            hidden = layer(hidden)
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        logits = self.classifier(hidden[:, 0])
        found = {"logits": logits}
        if labels is not None:
            found = {"loss": nn.functional.cross_entropy(logits, labels), **found}
        return ModelOutput(found)
