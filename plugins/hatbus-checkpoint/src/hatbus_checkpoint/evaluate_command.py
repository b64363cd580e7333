"""``hatbus evaluate TARGET``: validates what a checkpoint holds, without training."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from hatbus.jobs import change_options, show_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hatbus import Trainer
    from hatbus_checkpoint.shown_checkpoint import ShownCheckpoint


def target_arguments(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint, and what its job says otherwise."""
    parser.add_argument(
        "target",
        metavar="RUN|CHECKPOINT|JOB",
        help="a run's folder, a checkpoint, or a job file (its newest run)",
    )
    parser.add_argument("--name", help="a checkpoint's, last or best (default: the newest good)")
    parser.add_argument(
        "--weights", metavar="VIEW", help="raw, ema or another view (default: as the job says)"
    )
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")
    change_options(parser)


def trainer_for(args: argparse.Namespace) -> tuple[Trainer, ShownCheckpoint]:
    """The trainer of the checkpoint's job, which shows the checkpoint when it is asked to work.

    Raises:
        HatbusError: the target is none, or its job cannot be built.
    """
    show_log(quiet=args.quiet)
    plugins, options = tuple(args.plugins), tuple(args.options)
    from hatbus_checkpoint.targets import target_of

    target = target_of(args.target, args.name, plugins, options)
    target.look()  # what is not there is told before torch is
    from hatbus.jobs import prepare
    from hatbus_checkpoint.shown_checkpoint import ShownCheckpoint

    prepared, shown = prepare(target.job, plugins, options), ShownCheckpoint(target)
    prepared.job.run.init_from = None  # the checkpoint comes in its place
    trainer = prepared.build()
    trainer.bus.register(shown, "shown_checkpoint")
    return trainer, shown


def evaluate(words: Sequence[str]) -> int:
    """Validate a run's checkpoint without training."""
    parser = argparse.ArgumentParser(
        "hatbus evaluate",
        description=evaluate.__doc__,
        allow_abbrev=False,
        epilog="another loader: hatbus evaluate RUN -o 'validation.data_loader=\"@test_loader\"'",
    )
    target_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(words)
    trainer, shown = trainer_for(args)
    metrics = trainer.validate(args.weights)
    if int(os.environ.get("RANK", "0")) == 0:
        show(metrics, shown.name, args)
    return 0


def show(metrics: dict[str, float], name: str, args: argparse.Namespace) -> None:
    """Prints what was found."""
    if args.json:
        about: dict[str, Any] = {"checkpoint": name, "weights": args.weights}
        print(json.dumps({**about, "metrics": metrics}, indent=2))
        return
    from hatbus.jobs import show_metrics

    print(name + (f", {args.weights} weights" if args.weights else ""))
    show_metrics(metrics)
