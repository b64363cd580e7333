"""A run of Trackio, through its client."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hatbus.tracking import Described, Row, Service

_OWN: Final = ("project", "run", "run_id", "timestamp", "step", "time", "metrics")
"""Names that Trackio keeps for itself."""


class TrackioRun(Service):
    """Step by step, each once, ascending: Trackio keeps a second row of a step as well.

    Args:
        client: the package ``trackio``.
        options: more of ``trackio.init``.
    """

    is_ordered = True

    def __init__(self, client: Any, options: Mapping[str, Any]) -> None:
        self._client, self._options = client, options
        self._run: Any = None

    def open(self, run: Described) -> int | None:
        """Begins it, or goes on with it; tells its last step."""
        config = {**run.config, "plan": run.plan} if run.plan else dict(run.config)
        self._run = self._client.init(
            name=f"{run.name}-{run.id[:6]}",
            resume="allow",
            config=config,
            embed=False,
            **self._options,
        )
        return int(self._run._next_step) - 1  # noqa: SLF001 - the client tells it nowhere else

    def send(self, rows: Sequence[Row]) -> None:
        """Hands them to the client, which has files of its own for what it cannot upload yet."""
        for row in rows:
            for path in row.checkpoints:
                self._send_checkpoint(path)
            values: dict[str, Any] = {**row.scalars, "epoch": row.epoch}
            for name, (counts, edges) in row.histograms.items():
                values[name] = self._client.Histogram(np_histogram=(counts, edges))
            for name, file in row.images.items():
                if file.exists():
                    values[name] = self._client.Image(str(file))
            for name, text in row.texts.items():
                values[name] = self._client.Markdown(text)
            self._run.log({_free(name): one for name, one in values.items()}, step=row.step)

    def close(self, how: str, seconds: float) -> None:
        """Waits until everything is written."""
        run, self._run = self._run, None
        run.finish()

    def where(self) -> str:
        """The command that shows it, or the address of the Space or server."""
        space, server = self._options.get("space_id"), self._options.get("server_url")
        if space:
            return f"https://huggingface.co/spaces/{space}"
        return server or f'trackio show --project "{self._options["project"]}"'

    def _send_checkpoint(self, path: Path) -> None:
        if path.exists():
            alias = re.sub(r"[^\w.-]", "-", path.name.rpartition("checkpoint-")[2]) or "checkpoint"
            name = f"checkpoint-{self._run.name}"
            self._run.log_artifact(str(path), name=name, type="model", aliases=[alias])


def _free(name: str) -> str:
    return f"log/{name}" if name in _OWN or name.startswith("__") else name
