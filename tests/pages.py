"""The pages of the documentation, and the blocks that tests take out of them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import refresh
import torch

DOCS = Path(__file__).resolve().parent.parent / "docs"
STAND_INS = Path(__file__).resolve().parent / "standins"
FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1\s*?$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^# ([\w./-]+\.\w+)\n")


def module(name: str) -> ModuleType:
    """A script of ``docs/``."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Block(NamedTuple):
    """A fenced block: its language, the words behind it, its text and its line."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int


def all_blocks(page: Path) -> list[Block]:
    """The blocks of a page."""
    text = page.read_text("utf-8")
    found = []
    for fence in FENCE.finditer(text):
        language, *words = fence[2].split() or [""]
        line = text.count("\n", 0, fence.start(3)) + 1
        found.append(Block(language, tuple(words), fence[3], line))
    return found


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in these languages that are run block by block."""
    elsewhere = {"no-run", "session"}
    found = all_blocks(page)
    return [b for b in found if b.language in languages and not elsewhere & set(b.words)]


def session(page: Path) -> list[str]:
    """The commands of a page that one shell runs in order: its ``sh session`` blocks."""
    return [
        line
        for block in all_blocks(page)
        if "session" in block.words
        for line in block.text.splitlines()
    ]


def with_blocks(*languages: str) -> list[object]:
    """The pages that have such blocks, as parameters."""
    return [
        pytest.param(page, id=page.relative_to(DOCS.parent).as_posix())
        for page in refresh.pages()
        if blocks(page, *languages)
    ]


def commands(page: Path, blocks_of: list[Block] | None = None) -> list[str]:
    """The commands of a page whose output is not shown."""
    chosen = blocks(page, "", "sh") if blocks_of is None else blocks_of
    lines = "\n".join(b.text for b in chosen).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split(" #")[0].split("&&")]


def of_hatbus(page: Path) -> list[str]:
    """Those that begin with ``hatbus``."""
    return [command for command in commands(page) if command.startswith("hatbus ")]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Small models on a busy machine; the random state is as it was afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def done(*words: object, site: Path | None = None) -> str:
    """What a command printed, which ended well; it sees the packages in a folder."""
    path = os.pathsep.join(map(str, [*([site] if site else []), *filter(None, sys.path)]))
    ran = subprocess.run(
        list(map(str, words)),
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def stand_in(page: Path, folder: Path) -> None:
    """Puts into a folder what stands for the packages that a page imports and that are not here."""
    for made in sorted(STAND_INS.glob("*.py")):
        used = re.search(rf"^from {made.stem} import", page.read_text("utf-8"), re.M)
        if used and importlib.util.find_spec(made.stem) is None:
            shutil.copy(made, folder)


def write_files(page: Path, folder: Path) -> list[Path]:
    """The blocks of a page that are files, written; beside them what stands in for a package."""
    stand_in(page, folder)
    written = []
    for block in blocks(page, "python", "toml"):
        if named := _FILE.match(block.text):
            path = folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, "utf-8")
            written.append(path)
    return written
