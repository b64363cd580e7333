"""Rewrites what programs write: two whole pages, tables, output in console blocks, one stub.

``python docs/refresh.py`` in an environment in which everything is installed. A console block holds
commands, each ``$ hatbus ...``, followed by what they print; ``...`` alone stands for lines left
out. A test fails when a page would change.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parent
WIDTH = 88
"""Columns of the terminal whose output is shown; more would not fit on a page."""
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """Every page of the documentation and every README."""
    root = DOCS.parent
    return [
        *sorted(DOCS.glob("*.md")),
        *sorted(DOCS.glob("how-to/*.md")),
        *sorted(DOCS.glob("plugins/*.md")),
        root / "README.md",
        *sorted(root.glob("plugins/*/README.md")),
    ]


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder to run the commands of the pages in: ``docs/examples``, and the digits job."""
    before, columns = Path.cwd(), os.environ.get("COLUMNS")
    ignored = shutil.ignore_patterns("runs", "__pycache__")
    with tempfile.TemporaryDirectory() as name, kept_log():
        shutil.copytree(DOCS / "examples", Path(name, "docs/examples"), ignore=ignored)
        shutil.copytree(DOCS / "examples/digits", name, ignore=ignored, dirs_exist_ok=True)
        os.chdir(name)
        os.environ["COLUMNS"] = str(WIDTH)
        try:
            yield Path(name)
        finally:
            os.chdir(before)
            os.environ.pop("COLUMNS")
            if columns is not None:
                os.environ["COLUMNS"] = columns


@contextlib.contextmanager
def kept_log() -> Iterator[None]:
    """The command line sets hatbus's log up; afterwards it is as it was."""
    log = logging.getLogger("hatbus")
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    try:
        yield
    finally:
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)


def output_of(command: str, more: Sequence[str] = (), codes: Collection[int] = (0, 2)) -> str:
    """What a ``hatbus ...`` command prints here, on both streams.

    Args:
        command: the command.
        more: further words for it.
        codes: exit codes that are accepted; a page may show a mistake.

    Raises:
        RuntimeError: it ended with another one.
    """
    from hatbus.cli import main

    words = [*shlex.split(command, comments=True), *more]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = main(words[1:])
        except SystemExit as left:
            code = int(left.code or 0)
    text = "\n".join(line.rstrip() for line in printed.getvalue().splitlines())
    if words[0] != "hatbus" or code not in codes:
        raise RuntimeError(f"{command!r} ended with {code}:\n{text}")
    return text


def refreshed(text: str) -> str:
    """A page with its tables of options and the output in its console blocks as they are now.

    It needs a ``workplace``.
    """
    from comparison_page import recorded, with_comparison  # type: ignore[import-not-found]  # beside it
    from hosts_table import with_hosts  # type: ignore[import-not-found]  # beside this script
    from options_tables import with_tables  # type: ignore[import-not-found]  # beside this script

    text = with_comparison(with_hosts(with_tables(text)), recorded())
    return CONSOLE.sub(_refreshed_block, text)


def _refreshed_block(found: re.Match[str]) -> str:
    """One console block, with every command's output anew."""
    parts = re.split(r"^\$ (.*)\n", found[1], flags=re.MULTILINE)
    lines = []
    for command, shown in zip(parts[1::2], parts[2::2], strict=True):
        printed = output_of(command)
        same = fits(printed, shown)
        lines += [f"$ {command}", shown.rstrip("\n") if same else printed]
    return "\n".join(["```console", *lines, "```"])


def fits(printed: str, shown: str) -> bool:
    """Whether output is what a page shows, ``...`` standing for any number of lines."""
    pattern = [
        ".*" if line == "..." else re.escape(line) for line in shown.rstrip("\n").split("\n")
    ]
    return re.fullmatch("\n".join(pattern), printed, re.DOTALL) is not None


def main() -> None:
    """Rewrites the pages."""
    import comparison_page as comparison  # type: ignore[import-not-found]  # beside this script
    import growth_page as growth  # type: ignore[import-not-found]  # beside this script
    from callbacks_stub import STUB, callbacks_stub  # type: ignore[import-not-found]  # beside this script
    from events_page import events_page  # type: ignore[import-not-found]  # beside this script
    from reference_page import reference_page  # type: ignore[import-not-found]  # beside this script
    from works_with_page import (  # type: ignore[import-not-found]  # beside this script
        recorded,
        works_with_page,
    )

    (DOCS / "comparison.md").write_text(comparison.comparison_page(comparison.recorded()), "utf-8")
    (DOCS / "growth.md").write_text(growth.growth_page(growth.recorded()), "utf-8")
    (DOCS / "works-with.md").write_text(works_with_page(recorded()), "utf-8")
    (DOCS / "events.md").write_text(events_page(), "utf-8")
    (DOCS / "reference.md").write_text(reference_page(), "utf-8")
    STUB.write_text(callbacks_stub(), "utf-8")
    with workplace():
        for page in pages():
            text = page.read_text("utf-8")
            new = refreshed(text)
            if new != text:
                page.write_text(new, "utf-8")
                print("rewritten:", page.name)


if __name__ == "__main__":
    main()
