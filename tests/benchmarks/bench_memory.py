"""Two processes: the most memory that one takes for a model of 400 MB, by FSDP2 against DDP.

Each way runs in processes of its own. Prints the peak of the resident memory (``ru_maxrss``, MB)
beyond what torch takes when it is imported, and all of it; the ratios are to stay below the bar.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BAR = 0.6
WIDTH, BLOCKS, STEPS = 2048, 24, 3
"""Each block has 2048 x 2048 weights of 4 bytes: 16.8 MB; 24 of them are 403 MB."""


def main() -> None:
    """Starts both ways, or is one process of one of them."""
    if "RANK" in os.environ:
        rank(sys.argv[1], Path(sys.argv[2]))
        return
    found = {how: peaks(how) for how in ("ddp", "fsdp2")}
    for rank_, (ddp, fsdp2) in enumerate(zip(*found.values(), strict=True)):
        own = fsdp2["peak"] - fsdp2["base"], ddp["peak"] - ddp["base"]
        print(
            f"rank {rank_}: FSDP2 {fsdp2['peak']:.0f} MB, DDP {ddp['peak']:.0f} MB: "
            f"{fsdp2['peak'] / ddp['peak']:.2f} times (bar: {BAR}); without torch's own "
            f"{own[0]:.0f} MB and {own[1]:.0f} MB: {own[0] / own[1]:.2f} times"
        )


def peaks(how: str) -> list[dict[str, float]]:
    """What each process took."""
    with tempfile.TemporaryDirectory() as folder:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        words = [*launch, __file__, how, folder]
        root = Path(__file__).resolve().parents[2]
        env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *words], env=env, check=True)
        return [json.loads((Path(folder) / f"{r}.json").read_text()) for r in (0, 1)]


def rank(how: str, folder: Path) -> None:
    """Trains for some steps with AdamW; notes the peak."""
    import torch
    from torch import nn

    from hatbus import Trainer
    from hatbus.parallel import Parallel

    torch.set_num_threads(1)
    base = most()
    torch.manual_seed(0)
    layers = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(BLOCKS))
    model = nn.Sequential(*(nn.Sequential(layer, nn.Tanh()) for layer in layers))
    chance = torch.Generator().manual_seed(1)
    data = [tuple(torch.randn(2, 8, WIDTH, generator=chance)) for _ in range(STEPS)]
    plan: Any = how if how == "ddp" else Parallel(how, blocks="*")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, foreach=False)
    trainer = Trainer(
        model, optimizer, data, nn.functional.mse_loss, parallel=plan, device="cpu", log_every=0
    )
    trainer.fit(num_epochs=1)
    own = os.environ["RANK"]
    (folder / f"{own}.json").write_text(json.dumps({"base": base, "peak": most()}))
    sys.stdout.flush()
    os._exit(0)


def most() -> float:
    """The peak of this process's memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
