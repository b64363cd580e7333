"""What the digits run shows in TensorBoard beside its curves."""

from __future__ import annotations

from typing import Any

import torch


def pictures(writer: Any, batch: Any, model_outs: torch.Tensor, global_step_id: int) -> None:
    """The first images of the batch, and how sure the net is of the right digit."""
    images, labels = batch
    sure = model_outs.detach().softmax(dim=1)[torch.arange(len(labels)), labels]
    writer.add_images("batch/images", images[:16], global_step_id)
    writer.add_histogram("batch/probability of the right digit", sure, global_step_id)


def weights(writer: Any, model: torch.nn.Module, global_step_id: int) -> None:
    """Every weight, as it is spread."""
    for name, value in model.named_parameters():
        writer.add_histogram(f"weights/{name}", value, global_step_id)
