"""A run of hatbus's own, for callbacks of other trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import host_loops as loops

from hatbus import Trainer
from hatbus.callbacks import Checkpoint, Validation

STEPS = loops.STEPS


def trained(plugins: Any, folder: Path, epochs: int = 3, **options: Any) -> Trainer:
    """A run of hatbus's own, with validation and checkpoints."""
    model = loops.new_model()
    trainer = Trainer(
        model,
        loops.new_optimizer(model),
        loops.new_loader(),
        plugins=[
            *(plugins if isinstance(plugins, list) else [plugins]),
            Validation(loops.new_loader(8)),
            Checkpoint(str(folder / "saved"), **options),
        ],
        device="cpu",
        run_dir=folder,
    )
    trainer.fit(num_epochs=epochs)
    return trainer
