"""A run at Weights & Biases, through its client."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hatbus.tracking import Described, Row, Service
from hatbus_wandb.transaction_log import last_step


class WandbRun(Service):
    """Step by step, each once, ascending, as wandb wants them.

    Args:
        client: the package ``wandb``.
        mode: ``"online"`` or ``"offline"``.
        options: more of ``wandb.init``.
    """

    is_ordered = True

    def __init__(self, client: Any, mode: str, options: Mapping[str, Any]) -> None:
        self._client, self._mode, self._options = client, mode, options
        self._run: Any = None

    def open(self, run: Described) -> int | None:
        """Begins it, or goes on with it; tells its last step."""
        is_online = self._mode == "online"
        files = run.folder / "wandb"
        held = -1 if is_online else last_step(files, run.id)
        settings = self._client.Settings(
            console="off", silent=True, init_timeout=30.0, finish_timeout=50.0
        )
        self._run = self._client.init(
            id=run.id,
            name=run.name,
            config=dict(run.config),
            dir=str(run.folder),
            mode=self._mode,
            resume="allow",
            reinit="create_new",
            settings=settings,
            **self._options,
        )
        if run.plan:
            plan = Path(self._run.dir) / "plan.txt"
            plan.write_text(run.plan, "utf-8")
            self._run.save(str(plan), base_path=self._run.dir, policy="now")
        return self._run.starting_step - 1 if is_online else held

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
                values[name] = self._client.Html(_as_html(text), inject=False)
            self._run.log(values, step=row.step, commit=True)

    def close(self, how: str, seconds: float) -> None:
        """Waits until everything is uploaded, as far as there is time."""
        run, self._run = self._run, None
        run.finish(exit_code=1 if how == "failed" else 0)

    def where(self) -> str:
        """The address of its page; offline, the command that uploads it."""
        if self._mode == "online":
            return str(self._run.url or "")
        folder = os.path.relpath(Path(self._run.dir).parents[1])
        return f"offline; upload it with: wandb sync {folder}/offline-run-*"

    def _send_checkpoint(self, path: Path) -> None:
        if path.exists():
            artifact = self._client.Artifact(f"checkpoint-{self._run.id}", type="model")
            artifact.add_dir(str(path)) if path.is_dir() else artifact.add_file(str(path))
            self._run.log_artifact(artifact, aliases=[path.name.rpartition("checkpoint-")[2]])


def _as_html(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<pre>{escaped}</pre>"
