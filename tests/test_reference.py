"""The reference: what is public is documented, on a page that the search of the docs finds."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import DOCS, all_blocks
from reference_page import constant_docs, members, reference_page

from hatbus import Context, Trainer
from hatbus.authoring.public_names import PublicName, public_modules, public_names

PAGE = DOCS / "reference.md"


def named(one: PublicName) -> str:
    return f"{one.module}.{one.name}"


def value_of(one: PublicName) -> Any:
    return getattr(importlib.import_module(one.module), one.name)


def documented_in(doc: str) -> set[str]:
    """The names that begin the entries of a docstring's sections."""
    entries = re.findall(r"^    (\w[\w, ]*): ", doc, re.MULTILINE)
    return {name for entry in entries for name in entry.split(", ")}


def test_the_reference_is_what_the_code_says() -> None:
    assert PAGE.read_text("utf-8") == reference_page(), "run `python docs/refresh.py`"


def test_the_examples_of_the_reference_give_what_they_show() -> None:
    names = {one.name: value_of(one) for one in public_names()}
    runner = doctest.DocTestRunner()
    for block in (b for b in all_blocks(PAGE) if b.language == "pycon"):
        runner.run(doctest.DocTestParser().get_doctest(block.text, names, PAGE.name, None, None))
    assert (runner.failures, runner.tries > 0) == (0, True)


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_of_a_module_is_in_its_chapter(module: str) -> None:
    page = PAGE.read_text("utf-8")
    _, _, rest = page.partition(f"\n## {module}\n")
    chapter = rest.partition("\n## ")[0]
    names = [one.name for one in public_names() if one.module == module]
    assert [name for name in names if f"\n### {name}\n" not in chapter] == []


def undocumented(one: PublicName) -> list[str]:
    """A name, or those of its methods, that has no docstring."""
    value = value_of(one)
    if not inspect.isclass(value):
        said = inspect.getdoc(value) if inspect.isroutine(value) else constant_docs(one.home)
        has = said if isinstance(said, str) else (said or {}).get(one.name)
        return [] if has else [named(one)]
    methods = [f"{named(one)}.{name}" for name, m in members(value) if not inspect.getdoc(m)]
    return methods if value.__doc__ else [named(one), *methods]


def test_every_public_name_and_method_has_a_docstring() -> None:
    assert [name for one in public_names() for name in undocumented(one)] == []


def test_public_names_are_found_at_home() -> None:
    for one in public_names():
        if one.name != "__version__":
            assert getattr(importlib.import_module(one.home), one.name) is value_of(one)


def test_every_attribute_of_the_context_is_documented() -> None:
    public = {name for name in Context.__slots__ if not name.startswith("_")}
    assert public - documented_in(inspect.getdoc(Context) or "") == set()


def test_every_argument_of_the_trainer_is_documented() -> None:
    arguments = set(inspect.signature(Trainer).parameters)
    assert arguments - documented_in(inspect.getdoc(Trainer) or "") == set()


def test_a_search_for_trainer_arguments_finds_the_reference(tmp_path: Path) -> None:
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    built = subprocess.run([*sphinx, DOCS, tmp_path], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    written = (tmp_path / "searchindex.js").read_text("utf-8")
    index = json.loads(written.removeprefix("Search.setIndex(").removesuffix(")"))
    page = index["docnames"].index("reference")
    for word in ("trainer", "argument"):  # as the search stems them
        found = [index[part].get(word, []) for part in ("terms", "titleterms")]
        assert page in [*np.atleast_1d(found[0]), *np.atleast_1d(found[1])]  # one alone is no list
    assert [page, "trainer"] in index["alltitles"]["Trainer"]


def test_the_reference_speaks_of_public_names_only() -> None:
    public = {named(one) for one in public_names()} | {*public_modules(), "hatbus.testing.plugin"}
    spoken = set(re.findall(r"`(hatbus(?:\.\w+)+)", PAGE.read_text("utf-8")))
    assert spoken - public == set()
