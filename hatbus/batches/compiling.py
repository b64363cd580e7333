"""``compile`` of a trainer: the model's forward pass and the losses through ``torch.compile``.

What is compiled is made once, and serves every ``fit`` of its trainer: so a second one compiles
nothing anew. Events, plugins and checkpoints see the model and the losses as they were given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hatbus.batches.batch_processor import BatchProcessor

LOSS = "loss"
"""The option that is hatbus's own: ``compile = { loss = false }`` leaves the losses as they are."""


class Compiling:
    """Makes what a run calls in the place of its model and its losses.

    Args:
        wanted: False; True; or options for ``torch.compile``, and ``loss``.
        given: the model as the user has compiled it; None where it came as it is.
    """

    def __init__(self, wanted: bool | Mapping[str, Any], given: Any) -> None:
        options = dict(wanted) if isinstance(wanted, Mapping) else {}
        self._with_losses = bool(wanted) and options.pop(LOSS, True)
        self._is_wanted, self._given, self._options = bool(wanted), given, options
        self._made: dict[int, tuple[Any, Any]] = {}

    def applied(self, model: torch.nn.Module, processor: Any) -> Any:
        """What the forward pass calls; tells the processor what it calls in the place of losses."""
        if isinstance(processor, BatchProcessor):
            processor.in_place_of_loss = self._compiled if self._with_losses else None
        if self._is_wanted:
            return self._compiled(model)
        return model if self._given is None else self._given

    def _compiled(self, part: Any) -> Any:
        if id(part) not in self._made:  # which holds the part too, so that the id stays its own
            self._made[id(part)] = part, torch.compile(part, **self._options)
        return self._made[id(part)][1]
