"""``Trackio``: delivers a run to Trackio, on this machine, a Space or a server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hatbus import option_values
from hatbus.errors import JobError
from hatbus.tracking import Service, Tracker, client_module, refuse_credentials


class Trackio(Tracker):
    """Delivers settings, metrics, images, texts and histograms to Trackio.

    What the run publishes is kept in its folder first, and delivered from there by a thread.
    Trackio's step is ``global_step_id``. A resumed run goes on in the same run of Trackio; a point
    that was delivered before a kill is not delivered again. Without ``space_id`` and ``server_url``
    everything stays on this machine, where ``trackio show`` shows it. When a Space or server does
    not answer, the training goes on and the points wait. Nothing is published from other ranks
    than the first.

    A token belongs into ``HF_TOKEN`` or ``TRACKIO_WRITE_TOKEN``: options are kept in the run's
    files.

    Args:
        project: of Trackio.
        name: of the run; by default that of its folder. A few letters are added, for Trackio finds
            a run by its name.
        group: of runs that belong together.
        space_id: a Space of Hugging Face to deliver to, ``"user/space"``.
        server_url: a server of your own to deliver to.
        private: whether a Space that is made is private.
        save_dir: folder of its files; by default in the run's, named like the instance.
        config: settings to show beside those of the job.
        describe: deliver the plan of the run's events, as the setting ``plan``.
        live: deliver at once; else only what is behind a checkpoint, and the rest at the end.
        checkpoints: deliver them as artifacts: none, the last or best one when the run is over, or
            all when they are made.

    Raises:
        JobError: a value that cannot be used.
    """

    plugin_name = "trackio"

    def __init__(
        self,
        project: str = "hatbus",
        name: str | None = None,
        group: str | None = None,
        space_id: str | None = None,
        server_url: str | None = None,
        private: bool | None = None,
        save_dir: str | Path | None = None,
        config: Mapping[str, Any] | None = None,
        *,
        describe: bool = True,
        live: bool = True,
        checkpoints: Literal["none", "last", "best", "all"] = "none",
    ) -> None:
        super().__init__(
            name, save_dir, config, describe=describe, live=live, checkpoints=checkpoints
        )
        option_values.text("trackio: project", project)
        words = self.given_texts(group=group, space_id=space_id, server_url=server_url)
        if server_url is not None:
            refuse_credentials("trackio: server_url", server_url, "TRACKIO_WRITE_TOKEN")
        if private is not None and not isinstance(private, bool):
            raise JobError(f"trackio: private is {private!r}; accepted: true, false")
        self._space_id, self._server_url = space_id, server_url
        self._init = {"project": project, "private": private, **words}
        self.options = {key: value for key, value in self._init.items() if value is not None}

    def connect(self) -> Service:
        """The client; for a Space or server, with what lets it in.

        Raises:
            JobError: the package is missing, or nobody is logged in.
        """
        client = client_module("trackio", "hatbus-trackio")
        from huggingface_hub import get_token

        from hatbus_trackio.trackio_run import TrackioRun

        space = self._space_id or os.environ.get("TRACKIO_SPACE_ID")
        server = self._server_url or os.environ.get("TRACKIO_SERVER_URL", "")
        if space and not get_token():
            raise JobError(
                "trackio: nobody is logged in to Hugging Face; hf auth login, or the environment "
                "variable HF_TOKEN, does that, and without space_id no login is needed"
            )
        has_token = "write_token=" in server or os.environ.get("TRACKIO_WRITE_TOKEN")
        if server and not space and not has_token:
            raise JobError(
                "trackio: the server wants a token; put it into the environment variable "
                "TRACKIO_WRITE_TOKEN"
            )
        return TrackioRun(client, self._init)
