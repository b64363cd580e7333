"""The comparison says what was recorded, of the pinned versions; and a try of hatbus in it."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comparison_page
import growth_page
import pytest
import torch

from peers import measures, run
from peers.work import Job

BY_HAND, HATBUS = (importlib.import_module(f"peers.of_{name}").train for name in ("hand", "hatbus"))


def test_the_page_is_that_of_the_record(checkout: Path) -> None:
    record = comparison_page.recorded()
    assert (checkout / "docs/comparison.md").read_text("utf-8") == comparison_page.comparison_page(
        record
    )
    picture = (checkout / "docs/comparison.svg").read_text("utf-8")
    assert f"record {comparison_page.digest(record)}" in picture


def test_the_page_of_growth_is_that_of_its_record(checkout: Path) -> None:
    page = growth_page.growth_page(growth_page.recorded())
    assert (checkout / "docs/growth.md").read_text("utf-8") == page


def test_the_record_is_of_the_pinned_versions_and_whole(checkout: Path) -> None:
    record = comparison_page.recorded()
    files = [checkout / "requirements-peers.txt", checkout / "constraints.txt"]
    text = "\n".join(file.read_text("utf-8") for file in files)
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))
    found = {name: version for name, version in record["versions"].items() if name != "hatbus"}
    assert found == {name: pinned[run.DISTRIBUTIONS.get(name, name)] for name in found}
    assert set(record["versions"]) == {"torch", *run.DISTRIBUTIONS}
    assert list(record["measures"]) == list(measures.MEASURES)
    assert list(record["promises"]) == list(run.TRIALS)
    assert all(set(row) == set(run.DISTRIBUTIONS) for row in record["promises"].values())


def test_readme_shows_lines_of_the_comparison(checkout: Path) -> None:
    readme = (checkout / "README.md").read_text("utf-8")
    record = comparison_page.recorded()
    assert readme == comparison_page.with_comparison(readme, record)
    assert f"{record['measures']['everything on']['figures']['hatbus']:,.0f}" in readme


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", measures.MEASURES)
def test_every_measure_is_taken_of_hatbus_and_by_hand(name: str) -> None:
    measure = measures.MEASURES[name]
    for train in (HATBUS, BY_HAND):
        assert math.isfinite(measures.once(train, measures.shortened(measure.job), measure.read))


@pytest.mark.parametrize("duty", ["clip", "scale", "lr", "metrics", "ema", "none"])
def test_hatbus_does_the_work_of_the_loop_by_hand(duty: str) -> None:
    job = Job("toy", 6, **({} if duty == "none" else {duty: True}))
    ours, theirs = (measures.trained(train, job) for train in (HATBUS, BY_HAND))
    pairs = list(zip(ours.model.parameters(), theirs.model.parameters(), strict=True))
    if duty == "ema":
        pairs += zip(ours.average, theirs.average, strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-6
    assert ours.accuracy == pytest.approx(theirs.accuracy) if duty == "metrics" else True


def test_a_peer_that_does_other_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy:
        name = "lazy"

        def ask(self, **_: Any) -> dict[str, float]:
            return measures.checked(lambda _: None, BY_HAND, "lazy")

    with pytest.raises(RuntimeError, match="lazy end with other weights"):
        run.same_work([Lazy()])


@pytest.mark.timeout(300)
def test_hatbus_keeps_its_promises_in_a_process_that_is_asked(tmp_path: Path) -> None:
    with run.peers_of(["hatbus"], tmp_path / "log") as (peer,):
        for trial in run.TRIALS:
            options = {"kills": 1} if trial == "killed while saving" else {}
            found = peer.ask(promise=trial, **{"with": options})
            assert found["verdict"] == "kept", found
