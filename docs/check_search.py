"""Whether the search of the built pages finds what users look for; `tox -e docs` asks.

``python docs/check_search.py FOLDER``, the folder of the HTML.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from sphinx.search.en import SearchEnglish

ASKED = {
    "finetune": "fine-tuning",
    "fine-tune": "fine-tuning",
    "GAN": "how-to/gan",
    "two optimizers": "how-to/gan",
    "LBFGS": "optimizers",
    "distill": "how-to/distillation",
    "sweep": "how-to/sweep",
    "hyperparameter": "how-to/sweep",
    "optuna": "how-to/sweep",
    "test set": "evaluate",
    "lr finder": "how-to/learning-rate",
    "SLURM": "how-to/slurm",
    "preemption": "how-to/slurm",
    "training step": "how-to/training-step",
    "several losses": "how-to/several-losses",
    "compare runs": "how-to/several-runs",
    "dry run": "how-to/quick-look",
    "time limit": "how-to/quick-look",
    "wandb": "trackers",
}
"""Words to a page that is to be among those found."""


def found(index: dict[str, Any], words: str) -> set[str]:
    """The pages that hold all of some words, as Sphinx's own search looks for them."""
    stem = SearchEnglish({}).stem
    pages: list[set[int]] = []
    for word in words.lower().replace("-", " ").split():
        holding: set[int] = set()
        for kind in ("terms", "titleterms"):
            numbers = index[kind].get(stem(word), [])
            holding.update([numbers] if isinstance(numbers, int) else numbers)
        pages.append(holding)
    return {index["docnames"][number] for number in set.intersection(*pages)}


def main() -> int:
    """Says what is not found; returns 1 then."""
    text = Path(sys.argv[1], "searchindex.js").read_text("utf-8")
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    lost = [
        f"{words!r} does not find {page}"
        for words, page in ASKED.items()
        if page not in found(index, words)
    ]
    print("\n".join(lost) or f"the search finds {len(ASKED)} pages that users ask for")
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main())
