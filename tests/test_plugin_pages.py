"""The pages of the plugins: every example runs, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PLUGINS = (
    "hatbus-model",
    "hatbus-grad",
    "hatbus-export",
    "hatbus-tensorboard",
    "hatbus-validation",
)
PAGES = Path(__file__).parents[1] / "docs" / "plugins"


@pytest.mark.parametrize("page", PLUGINS)
def test_every_example_of_the_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (PAGES / f"{page}.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert examples
    names: dict[str, object] = {"__name__": page}
    for example in examples:
        exec(compile(example, f"{page}.md", "exec"), names)
