"""The examples of the pages about hosts, with the libraries themselves: `tox -e hosts`."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest

HOSTS = [b for b in pages.all_blocks(pages.DOCS / "hosts.md") if b.language == "python"]


@pytest.mark.parametrize("block", HOSTS, ids=lambda block: f"line {block.line}")
def test_the_example_of_a_host_runs(
    block: pages.Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(block.text.splitlines()) <= 25
    exec(compile(block.text, "hosts.md", "exec", dont_inherit=True), {"__name__": "hosts"})


@pytest.mark.parametrize("name", ["with_transformers", "with_lightning"])
def test_the_example_of_a_callback_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = pages.blocks(pages.DOCS / "plugins/hatbus-hosts.md", "python")
    names: dict[str, object] = {"__name__": "hosts"}
    exec(compile(block.text, "hatbus-hosts.md", "exec", dont_inherit=True), names)
    trainer = names[name]()  # type: ignore[operator]  # a function of the page
    trainer.fit(num_epochs=2)
    assert trainer.ctx.updates == 8
