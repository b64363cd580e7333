"""``hatbus new-plugin NAME``: a package that builds, installs and passes its own tests at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hatbus.authoring.new_plugin import DEFAULT_EVENT, LICENSES, names_of, write_plugin

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("name", metavar="NAME", help="of the package, such as hatbus-loss-watch")
    parser.add_argument(
        "--event", default=DEFAULT_EVENT, help=f"what it hooks (default: {DEFAULT_EVENT})"
    )
    parser.add_argument(
        "--license",
        default=LICENSES[0],
        help=f"{', '.join(LICENSES)} (default: {LICENSES[0]})",
    )
    parser.add_argument(
        "--into", metavar="FOLDER", help="where (default: a folder of the package's name, here)"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the package and says what to do with it.

    Raises:
        PluginError: a name, event, license or folder that cannot be used.
    """
    names = names_of(args.name)
    folder = Path(args.into or names.distribution)
    files = write_plugin(names, folder, event=args.event, license_name=args.license)
    for file in files:
        print(file)
    print()
    print(f"cd {folder}")
    print('python -m pip install -e ".[test]"')
    print("python -m pytest")
    print(f"hatbus run JOB -p {names.plugin}")
    return 0
