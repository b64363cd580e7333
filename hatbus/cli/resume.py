"""``hatbus resume DIR``: goes on with a run from its newest good checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from hatbus.errors import JobError

if TYPE_CHECKING:
    import argparse

JOB_FILE = "job.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    from hatbus.cli import run as run_command

    parser.add_argument("dir", metavar="DIR", help="the run's folder (run_dir), with its job.json")
    run_command.change_options(parser)
    run_command.training_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the folder's job again with ``resume = "auto"``.

    Raises:
        HatbusError: there is no run to resume, or what went wrong in it.
    """
    from hatbus.cli.run import checkpoint_options, show_log
    from hatbus.job import read_job
    from hatbus.signals import ignore_saves

    ignore_saves()
    show_log(quiet=args.quiet)
    path = Path(args.dir) / JOB_FILE
    if not path.is_file():
        raise JobError(f"no {JOB_FILE} in {args.dir!r}; give the folder of a run (its run_dir)")
    plugins = tuple(args.plugins)
    job = read_job(path, plugins)
    options = [
        "run.resume=auto",
        f"run.run_dir={json.dumps(args.dir)}",
        *checkpoint_options(job, args.drop_plugin_state or [], args.override or []),
        *args.options,
    ]
    from hatbus import jobrun

    prepared = jobrun.prepare(path, plugins, tuple(options))
    return jobrun.run(prepared, quiet=args.quiet, profile=args.profile)
