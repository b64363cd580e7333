"""The documentation: what it shows runs, and what there is to know is in it.

Blocks are told apart by their language:

* ``python``: runs, in order; the blocks of a page share one namespace. A first line such as
  ``# src/acme/warm.py`` makes a block a file as well.
* ``toml``: a job, or part of one, is checked as ``hatbus run`` would.
* ``sh`` and no language: lines that begin with ``hatbus`` run on a copy of ``docs/examples``.
* ``console``: so do its ``$`` lines, and their output is compared with what the page shows.

``sh session`` is one story, which a shell runs in test_a_stranger_follows_the_docs.py. ``no-run``
behind the language leaves a block out; test_docs_no_run.py sees to those.

The READMEs of the plugins speak of a ``model``, an ``optimizer`` and so on without making them;
``a_readers_own`` does.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from events_page import events_page
from pages import (
    DOCS,
    FENCE,
    blocks,
    done,
    module,
    of_hatbus,
    one_thread,
    refresh,
    with_blocks,
    write_files,
)

from hatbus import discovery
from hatbus.cli import COMMANDS
from hatbus.discovery import first_party
from hatbus.discovery.first_party import FIRST_PARTY
from hatbus.events.training import EVENTS, MOMENT
from hatbus.jobs.job import PLUGIN_KEYS, RUN_KEYS, parse_job
from hatbus.jobs.jobrun import with_place
from hatbus.jobs.options import check

SHORT = ["-o", "run.num_epochs=1", "-o", "run.args.batch_size=512"]


@pytest.fixture
def workplace(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TERM", "dumb")
    others = sys.modules.pop("train", None)  # another example's, if a test has left one
    with one_thread(), refresh.workplace() as folder:
        yield folder
    sys.modules.pop("train", None)
    if others is not None:
        sys.modules["train"] = others


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder whose ``src`` can be imported from; what was imported is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "src")
    before = set(sys.modules)
    with one_thread(), refresh.kept_log():
        yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


class Net(torch.nn.Module):
    """What a reader of the READMEs trains."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        )
        self.det_head = torch.nn.Linear(4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.det_head(self.backbone(images).mean((2, 3)))


class Pair(torch.nn.Module):
    """A student and its teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = Net(), Net()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.student(images)


def a_readers_own() -> dict[str, object]:
    """The names that the READMEs of the plugins take for granted."""
    model = Net()
    batches = [(torch.randn(2, 3, 8, 8), torch.randn(2, 1)) for _ in range(2)]
    loss = torch.nn.functional.mse_loss
    return {
        "model": model,
        "pair": Pair(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "loss": loss,
        "losses": {"det": loss, "seg": loss},
        **dict.fromkeys(("loader", "det_loader", "seg_loader", "val_loader"), batches),
    }


@pytest.mark.parametrize("page", with_blocks("python"))
def test_the_python_of_a_page_runs(page: Path, own_folder: Path) -> None:
    write_files(page, own_folder)
    is_plugins = page.name == "README.md" and page.parent != DOCS.parent
    names = {"__name__": page.stem, **(a_readers_own() if is_plugins else {})}
    for block in blocks(page, "python"):
        source = "\n" * (block.line - 1) + block.text
        exec(compile(source, str(page), "exec", dont_inherit=True), names)


@pytest.mark.parametrize("page", with_blocks("toml"))
def test_the_jobs_of_a_page_are_accepted(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        tables = tomllib.loads(block.text)
        if not {"run", "plugins"} & set(tables):
            continue
        job = tmp_path / "job.toml"
        whole = "" if "run" in tables else '[run]\nentry = "train.py:build"\nnum_epochs = 1\n'
        job.write_text(whole + block.text, "utf-8")
        parsed, problems = parse_job(job)
        assert parsed is not None, problems
        for name, plugin in parsed.plugins.items():
            cls = discovery.lookup(plugin.use).load()
            where = f"{page.name} line {block.line} [plugins.{name}]"
            options = with_place(name, cls, plugin.options, parsed.run_dir)
            problems += check(cls, options, where, lambda _: len, also=PLUGIN_KEYS)[1]
        assert not problems


@pytest.mark.parametrize(
    "page",
    [p for p in with_blocks("", "sh") if of_hatbus(p.values[0])],  # type: ignore[attr-defined]
)
def test_the_commands_of_a_page_succeed(page: Path, workplace: Path) -> None:
    own = [path.name for path in write_files(page, workplace)]
    for command in dict.fromkeys(of_hatbus(page)):
        is_run, words = command.startswith("hatbus run "), command.split()
        refresh.output_of(command, SHORT if is_run and words[2] not in own else [], codes=(0,))


@pytest.mark.parametrize("page", with_blocks("console"))
def test_the_output_that_a_page_shows_is_what_is_printed(page: Path, workplace: Path) -> None:
    text = page.read_text("utf-8")
    assert refresh.refreshed(text) == text, "run `python docs/refresh.py`"


def test_the_page_of_events_is_what_the_code_says() -> None:
    made = events_page()
    assert (DOCS / "events.md").read_text("utf-8") == made, "run `python docs/refresh.py`"


def test_the_plugin_of_the_tutorial_can_be_installed_and_used(
    own_folder: Path, workplace: Path
) -> None:
    write_files(DOCS / "writing-a-plugin.md", own_folder)
    tested = done(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", own_folder)
    assert re.search(r"\n1[34] passed, [12] skipped", tested), tested
    site = own_folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps"]
    done(*pip, "--no-index", "--disable-pip-version-check", "--target", site, own_folder)
    hatbus = [sys.executable, "-m", "hatbus"]
    assert "loss_limit: ok" in done(*hatbus, "plugins", "check", own_folder, site=site)
    assert "check_every" in done(*hatbus, "plugins", "show", "loss_limit", site=site)
    job = Path("job.toml").read_text("utf-8").replace("num_epochs = 8", "num_steps = 20")
    Path("job.toml").write_text(job, "utf-8")
    options = ["-o", "loss_limit.limit=99", "-o", "loss_limit.check_every=2"]
    ran = done(*hatbus, "run", "job.toml", "-p", "loss_limit", *options, site=site)
    assert "after 6 steps" in ran


def test_the_loop_of_your_own_trains(capsys: pytest.CaptureFixture[str]) -> None:
    with one_thread():
        ctx = module("examples/loop_of_your_own").train()
    assert ctx.latest["train/loss"] < 0.01
    source = (DOCS / "examples/loop_of_your_own.py").read_text("utf-8")
    body = source[source.index("    with ctx.within(") : source.index("    return ctx\n\n\n")]
    assert len(body.splitlines()) <= 20


def test_every_event_is_documented() -> None:
    text = (DOCS / "events.md").read_text("utf-8")
    assert [name for name in EVENTS if f"\n### {name}\n" not in text] == []


@pytest.mark.parametrize("page", sorted(DOCS.glob("plugins/*.md")), ids=lambda page: page.stem)
def test_the_options_of_a_page_are_those_of_the_constructors(page: Path, workplace: Path) -> None:
    text = page.read_text("utf-8")
    assert refresh.refreshed(text) == text, "run `python docs/refresh.py`"


@pytest.mark.parametrize("name", FIRST_PARTY)
def test_a_plugin_of_hatbus_is_documented_with_an_example_and_its_options(name: str) -> None:
    page = DOCS / f"plugins/{FIRST_PARTY[name].distribution}.md"
    assert f"| [`{name}`](" in (DOCS / "plugins/index.md").read_text("utf-8")
    assert page.exists(), f"there is no page {page.name}"
    text = page.read_text("utf-8")
    assert re.search(rf"^## .*\b{name}\b", text, re.MULTILINE), "it has no heading"
    (table,) = re.findall(rf"<!-- options of {name} -->(.*?)<!-- end", text, re.DOTALL)
    undescribed = re.findall(r"^\| (`\w+`|others) \|.*\|\s*\|$", table, re.MULTILINE)
    assert undescribed == []
    examples = "".join(block.text for block in blocks(page, "python"))
    assert re.search(rf"\b{FIRST_PARTY[name].class_name}\(", examples), "it has no example"


def test_comparison_with_other_trainers_names_what_hatbus_has() -> None:
    text = (DOCS / "coming-from.md").read_text("utf-8")
    others, hat = text.split("## From HAT")
    rows = re.findall(r"^\| (.*?) \|", others, re.MULTILINE)
    named = {n for row in rows for n in re.findall(r"`(\w+)`", row) if "in `[run]`" not in row}
    assert named <= {*EVENTS, *FIRST_PARTY}
    pairs = re.findall(r"^\| `([A-Z]\w+)` \| `(\w+)`", hat, re.MULTILINE)
    assert all(FIRST_PARTY[name].class_name == cls for cls, name in pairs)
    assert {name for name in FIRST_PARTY if f"`{name}`" not in hat} == set()
    moments = {name for name, event in EVENTS.items() if event.kind == MOMENT}
    assert {name for name in moments if f"`{name}`" not in hat} == set()


def test_every_key_of_a_job_is_documented() -> None:
    text = (DOCS / "jobs.md").read_text("utf-8")
    rows = " ".join(re.findall(r"^\|([^|]+)\|", text, re.MULTILINE))
    assert [key for key in (*RUN_KEYS, *PLUGIN_KEYS) if f"`{key}`" not in rows] == []


def test_every_command_is_documented() -> None:
    text = (DOCS / "cli.md").read_text("utf-8")
    names = (*COMMANDS, *first_party.COMMANDS)
    assert [name for name in names if f"`hatbus {name}" not in text] == []


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = (DOCS / "index.md").read_text("utf-8")
    pages = [p.stem for p in DOCS.glob("*.md") if p.stem != "index"]
    pages += [f"how-to/{page.stem}" for page in DOCS.glob("how-to/*.md")]
    assert [name for name in pages if not re.search(rf"^{name}$", listed, re.M)] == []


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in refresh.pages():
        text = FENCE.sub("", page.read_text("utf-8"))
        for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_files_and_functions_on_the_walks_through_the_core_are_there() -> None:
    text = (DOCS / "design.md").read_text("utf-8")
    walks = re.findall(r"^ *(\S+) .*?(\w+/\w+\.py)", text, re.MULTILINE)
    assert len(walks) > 20
    root = DOCS.parent / "hatbus"
    for function, file in walks:
        name = function.rpartition(".")[2].removesuffix("(ctx)")
        if name not in {"run_step", "due,"}:  # an event, which the bus makes; one of two
            assert re.search(rf"(def|class) {name}\b", (root / file).read_text("utf-8")), function
