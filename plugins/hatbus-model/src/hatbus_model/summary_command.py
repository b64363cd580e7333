"""``hatbus summary JOB``: the model on a real batch."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict

from hatbus.jobs import change_options, read_job, show_log


def summary(words: Sequence[str]) -> int:
    """Show modules, parameters, shapes and the time of a step.

    Raises:
        HatbusError: what is wrong with the job.
    """
    parser = argparse.ArgumentParser(
        "hatbus summary",
        description="Show modules, parameters, shapes and the time of a step on a real batch; "
        "nothing of any run is touched.",
        allow_abbrev=False,
    )
    parser.add_argument("job", metavar="JOB", help="the job file, such as job.toml")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="to time (default: 5)")
    parser.add_argument(
        "--depth", type=int, default=3, metavar="N", help="of modules in modules (default: 3)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")
    change_options(parser)
    args = parser.parse_args(words)
    show_log(quiet=args.quiet)
    job = (args.job, tuple(args.plugins), tuple(args.options))
    read_job(*job)  # a mistake is told before torch is there
    from hatbus.jobs import prepare
    from hatbus_model.model_summary import summarize

    found = summarize(prepare(*job).build(), args.steps, args.depth)
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(asdict(found)) if args.json else found)
    return 0
