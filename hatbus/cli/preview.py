"""``hatbus preview JOB``: draws the learning rate over the run, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hatbus.errors import JobError

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    from hatbus.cli.run import job_arguments

    job_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")
    parser.add_argument("--out", metavar="FILE", help="write a picture: .png, .svg or .pdf")
    parser.add_argument(
        "--steps-per-epoch", type=int, metavar="N", help="where a loader has no length"
    )


def run(args: argparse.Namespace) -> int:
    """Builds the job, runs its schedules alone, and draws what they did.

    Raises:
        HatbusError: what is wrong with the job, or why it cannot be drawn.
    """
    from hatbus.insight.preview_picture import check_target, draw
    from hatbus.jobs.command_line import show_log
    from hatbus.jobs.job import parse_job

    show_log(quiet=args.quiet)
    if args.steps_per_epoch is not None and args.steps_per_epoch < 1:
        raise JobError(f"--steps-per-epoch is {args.steps_per_epoch}; accepted: 1 or more")
    words = (args.job, tuple(args.plugins), tuple(args.options))
    if Path(args.job).suffix != ".py":
        parse_job(*words)  # a missing file is told before torch is imported
    target = Path(args.out) if args.out is not None else None
    if target is not None:
        check_target(target)
    from hatbus.insight.preview_run import preview
    from hatbus.jobs.preparing import prepare

    prepared = prepare(*words, args.stage)
    plan = prepared.job.run
    found = preview(prepared.build(), plan.num_epochs, plan.num_steps, args.steps_per_epoch)
    if target is not None:
        draw(found, target, title=args.job)
        print(target)
        return 0
    from hatbus.insight.preview_chart import show
    from hatbus.insight.terminal import terminal

    show(found, terminal())
    return 0
