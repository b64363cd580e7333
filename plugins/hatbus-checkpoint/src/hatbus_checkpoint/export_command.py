"""``hatbus export DIR``: a checkpoint's weights as one file for others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hatbus.errors import CheckpointError, JobError
from hatbus_checkpoint import listing

if TYPE_CHECKING:
    from collections.abc import Sequence


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "hatbus export", description=export.__doc__, allow_abbrev=False
    )
    parser.add_argument("dir", metavar="DIR", help="a checkpoint, or a folder of them or of a run")
    parser.add_argument("--name", help="its name, last or best (default: the newest good)")
    parser.add_argument(
        "--weights",
        metavar="NAME",
        default="raw",
        help="with --single: raw (default), or the plugin whose averages to write, such as ema",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        action="append",
        default=[],
        help="with --single: only tensors whose name matches, such as '*lora_*'; may be repeated",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--hat", metavar="FILE", help="write HAT's file, such as out.pth.tar")
    target.add_argument("--single", metavar="FILE", help="write one file, such as out.safetensors")
    return parser.parse_args(words)


def export(words: Sequence[str]) -> int:
    """Write a checkpoint's weights as one file."""
    args = _arguments(words)
    if args.hat and args.weights != "raw":
        raise JobError("--weights goes with --single; HAT's file holds the raw weights")
    if args.hat and args.only:
        raise JobError("--only goes with --single; HAT's file holds the whole model")
    if args.single and Path(args.single).suffix not in ("", ".safetensors"):
        raise JobError(f"--single is {args.single!r}; accepted: a name that ends in .safetensors")
    entry = listing.one_of(Path(args.dir), args.name)
    fault = listing.fault_of(entry)
    if fault:
        raise CheckpointError(f"checkpoint {entry.path.name!r} cannot be used: {fault}")
    from hatbus_checkpoint.exchange import to_hat, to_single
    from hatbus_checkpoint.restore import Saved

    if args.hat:
        to_hat(Saved(entry), Path(args.hat))
    else:
        to_single(Saved(entry), Path(args.single), args.weights, args.only)
    print(f"wrote {args.hat or args.single} from {entry.path.name}, {args.weights} weights")
    return 0
