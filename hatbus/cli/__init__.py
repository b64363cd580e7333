"""The command line. Each command is one module here, imported when it is the one asked for.

A command module has ``arguments(parser)`` and ``run(args) -> int``; ``COMMANDS`` makes it known.
Commands of other distributions are functions of the words that follow them (``of_plugins``).
Public: ``main``, which runs a command from Python.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from hatbus.cli import display, of_plugins
from hatbus.cli.streams import leave, lost_output, outlive_readers
from hatbus.discovery.first_party import is_first_party
from hatbus.errors import SaveError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "run": ("train what a job file says", "hatbus.cli.run"),
    "resume": ("go on with a run from its newest good checkpoint", "hatbus.cli.resume"),
    "runs": ("list runs and their metrics; compare, plot, clean", "hatbus.cli.runs"),
    "deliver": ("deliver to trackers what a run has left", "hatbus.cli.deliver"),
    "explain": ("show what will run when, and why there", "hatbus.cli.explain"),
    "preview": ("draw the learning rate over the run, without training", "hatbus.cli.preview"),
    "plugins": ("list, show and check plugins", "hatbus.cli.plugins"),
    "events": ("show the events that a plugin can hook", "hatbus.cli.events"),
    "new-plugin": ("write a package with a plugin that works", "hatbus.cli.new_plugin"),
    "schema": ("print the JSON schema of job files, for editors", "hatbus.cli.schema"),
}
"""Command to its line of help and its module."""
TRAINING: Final = ("run", "resume")
"""The commands that are there for more than what they print."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; one that is run inside a program leaves that program's log as it was.

    Args:
        argv: the words after ``hatbus``; the process's own when None.

    Returns:
        The exit code: 0, or that of the error (``hatbus.errors``), 1 for an exception in user code,
        130 for Ctrl-C.
    """
    if argv is None:
        outlive_readers()
        return _main(None)
    before = _log()
    try:
        return _main(argv)
    finally:
        if "logging" in sys.modules:  # which --help does without
            log = sys.modules["logging"].getLogger("hatbus")
            log.handlers[:], level, log.propagate = before
            log.setLevel(level)


def _log() -> tuple[list[Any], int, bool]:
    """Handlers, level and propagation of hatbus's log."""
    if "logging" not in sys.modules:
        return [], 0, True
    log = sys.modules["logging"].getLogger("hatbus")
    return log.handlers[:], log.level, log.propagate


def _main(argv: Sequence[str] | None) -> int:
    """Runs one command; as ``main``."""
    words = list(sys.argv[1:] if argv is None else argv)
    args: Any = None
    guilty = ""
    try:
        if words and words[0] not in COMMANDS and not words[0].startswith("-"):
            command = of_plugins.find(words[0])
            if not is_first_party(command.distribution):  # hatbus's own run the user's code
                guilty = f"command {command.name!r} ({command.source})"
            code = of_plugins.run(command, words[1:])
        else:
            if words and words[0] in COMMANDS:
                of_plugins.warn_of_another(words[:1])
            args = parser_of(words).parse_args(words)
            args.is_process = argv is None
            code = import_module(COMMANDS[args.command][1]).run(args)
        lost = lost_output()
        if lost:
            display.show_lines(lost)
            code = code if words[0] in TRAINING else SaveError.exit_code
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - each has its own exit code
        code = display.explain(error, guilty, traceback="--traceback" in words)
    except SystemExit as left:
        if argv is not None or not display.is_one_of_several() or not isinstance(left.code, int):
            raise
        code = left.code
    if argv is None and display.is_one_of_several():
        leave(code)
    return code


def parser_of(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line; only the chosen command's module says what it takes.

    Raises:
        HatbusError: there is no such command, or it cannot be used.
    """
    chosen = next((word for word in words if not word.startswith("-")), None)
    of_others = [] if chosen in COMMANDS else of_plugins.rows()
    if chosen is not None and chosen not in COMMANDS:
        of_plugins.find(chosen)
    widest = max(len(name) for name in (*COMMANDS, *(name for name, _ in of_others)))
    parser = argparse.ArgumentParser(
        prog="hatbus",
        description="A PyTorch training loop whose every event is a pluggy hook.",
        epilog="hatbus COMMAND --help says what a command takes.",
        allow_abbrev=False,
        formatter_class=partial(_Help, widest),
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, title="commands"
    )
    for name, (line, module) in COMMANDS.items():
        command = commands.add_parser(
            name, help=line, description=f"{line[0].upper()}{line[1:]}.", allow_abbrev=False
        )
        if name == chosen:
            import_module(module).arguments(command)
    for name, line in of_others:
        commands.add_parser(name, help=line.replace("%", "%%"), add_help=False)
    return parser


class _Help(argparse.HelpFormatter):
    """Help with the commands in one column; argparse forgets that they are indented."""

    def __init__(self, widest: int, prog: str, **options: Any) -> None:
        super().__init__(prog, **options)
        self._action_max_length = widest + 4


class _Version(argparse.Action):
    """``--version``, which looks the version up only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Prints it."""
        from hatbus import __version__

        print(f"hatbus {__version__}")
        parser.exit()
