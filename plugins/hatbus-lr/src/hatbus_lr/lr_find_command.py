"""``hatbus lr-find JOB``: tries growing learning rates, and shows what the loss does."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hatbus.jobs import change_options, show_log

if TYPE_CHECKING:
    from hatbus_lr.range_test import LrCurve


def lr_find(words: Sequence[str]) -> int:
    """Try growing learning rates and suggest one.

    Raises:
        HatbusError: what is wrong with the job, or why there is nothing to be found.
    """
    parser = argparse.ArgumentParser(
        "hatbus lr-find",
        description="Try growing learning rates and suggest one; nothing of any run is touched.",
        allow_abbrev=False,
    )
    parser.add_argument("job", metavar="JOB", help="the job file, such as job.toml")
    parser.add_argument(
        "--from", dest="lowest", type=float, metavar="LR", help="the first rate (default: 1e-7)"
    )
    parser.add_argument(
        "--to", dest="highest", type=float, metavar="LR", help="the last rate (default: 10)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="how many (default: 100)")
    parser.add_argument("--out", metavar="FILE", help="write a picture: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")
    change_options(parser)
    args = parser.parse_args(words)
    show_log(quiet=args.quiet)
    from hatbus.jobs import read_job

    read_job(args.job, tuple(args.plugins), tuple(args.options))  # told before torch is there
    if args.out:
        from hatbus.insight import check_target

        check_target(Path(args.out))
    from hatbus.jobs import prepare
    from hatbus_lr.range_test import HIGHEST, LOWEST, NUM_STEPS, check_range, find_lr

    lowest = LOWEST if args.lowest is None else args.lowest
    highest = HIGHEST if args.highest is None else args.highest
    steps = NUM_STEPS if args.steps is None else args.steps
    check_range(lowest, highest, steps)
    trainer = prepare(args.job, tuple(args.plugins), tuple(args.options)).build()
    curve = find_lr(trainer, lowest, highest, steps)
    if int(os.environ.get("RANK", "0")) == 0:
        tell(curve, args)
    return 0


def tell(curve: LrCurve, args: argparse.Namespace) -> None:
    """Shows what was found."""
    rate = curve.suggestion
    if args.out:
        curve.draw(args.out)
    if args.json:
        found = {"suggestion": rate, "rate_of_least": curve.rate_of_least}
        print(json.dumps({**found, "rates": curve.rates, "losses": curve.losses}))
        return
    if args.out:
        print(args.out)
    else:
        curve.show()
    print(verdict(curve))


def verdict(curve: LrCurve) -> str:
    """What the curve says, in a line."""
    rate, last = curve.suggestion, curve.rates[-1]
    if rate is None:
        return f"no suggestion: the loss falls at no rate from {curve.rates[0]:g} to {last:g}"
    if curve.is_open:
        return f"suggestion: above {rate:.2g}: the loss still falls at {last:g}; try a higher --to"
    return f"suggestion: {rate:.2g}, a third of the rate with the least loss"
