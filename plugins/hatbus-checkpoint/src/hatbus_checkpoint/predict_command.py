"""``hatbus predict TARGET``: a checkpoint's outputs for every sample of a loader, in files."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from hatbus.errors import JobError
from hatbus.log import log
from hatbus_checkpoint.evaluate_command import target_arguments, trainer_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hatbus import Trainer

NAME: Final = "predictions"
"""The plugin's, in the job of the run."""
_SECONDS: Final = 10.0
"""How often the log says how far it is."""


def predict(words: Sequence[str]) -> int:
    """Write a checkpoint's outputs for every sample of a loader."""
    parser = argparse.ArgumentParser(
        "hatbus predict",
        description=predict.__doc__,
        allow_abbrev=False,
        epilog="another loader: hatbus predict RUN -o predictions.data_loader=@test_loader",
    )
    target_arguments(parser)
    parser.add_argument("--out", metavar="FOLDER", help="of the files (default: predictions)")
    parser.add_argument("--format", help="jsonl or safetensors (default: jsonl)")
    parser.add_argument("--task", help="whose loader it is, in a job with tasks")
    parser.add_argument(
        "--anew", action="store_true", help="remove what an earlier prediction wrote there"
    )
    args = parser.parse_args(words)
    options = {"save_dir": args.out, "format": args.format, "anew": args.anew or None}
    args.plugins = [NAME, *args.plugins]
    args.options += [f"{NAME}.{k}={json.dumps(v)}" for k, v in options.items() if v is not None]
    trainer, _ = trainer_for(args)
    check_written(trainer)
    member = trainer.bus.members.get(NAME)
    loader, said = loader_of(trainer, member and member.plugin)
    trainer.ctx.storage["predicted_loader"] = said
    log.info("predicting on %s", said)
    count = stream(trainer.predict(loader, args.weights, args.task))
    if int(os.environ.get("RANK", "0")) == 0:
        show(member and member.plugin, count)
    return 0


def check_written(trainer: Trainer) -> None:
    """Refuses to predict for nobody.

    Raises:
        JobError: no plugin writes the outputs.
    """
    found = trainer.bus.implementations("write_outputs")
    if not any(not one.wrapper and not trainer.bus.members[one.plugin_name].core for one in found):
        raise JobError(f"no plugin writes the outputs: leave out -p no:{NAME}")


def stream(outputs: Iterable[Any]) -> int:
    """Takes all outputs, and says now and then how far it is; gives the number of batches."""
    count, said = 0, time.monotonic()
    for count, _ in enumerate(outputs, 1):
        if time.monotonic() - said > _SECONDS:
            said = time.monotonic()
            log.info("%d batches done", count)
    return count


def loader_of(trainer: Trainer, writer: Any) -> tuple[Any, str]:
    """The loader to predict, and how the job calls it.

    Raises:
        JobError: the job says none, or several.
    """
    tables = trainer.ctx.storage.get("job", {}).get("plugins", {})
    members = trainer.bus.members
    validating = [m.name for m in members.values() if hasattr(m.plugin, "data_loader")]
    for name in ([NAME] if writer is not None else []) + [n for n in validating if n != NAME]:
        plugin: Any = members[name].plugin
        loader = plugin.data_loader
        if loader is None:
            continue
        said = tables.get(name, {}).get("data_loader", "")
        if isinstance(loader, (Mapping, list, tuple)):
            raise JobError(
                f"{name} has several loaders ({said}); say which one: "
                f"-o {NAME}.data_loader=@test_loader"
            )
        return loader, str(said)
    raise JobError(
        "the job says no loader to predict; name one that its entry function returns: "
        f"-o {NAME}.data_loader=@test_loader"
    )


def show(writer: Any, count: int) -> None:
    """Prints where the outputs are."""
    from hatbus.option_values import short

    if writer is None or not writer.wrote:
        print(f"{count} batches predicted")
        return
    print(f"{writer.written} samples: {', '.join(str(short(p)) for p in writer.wrote)}")
