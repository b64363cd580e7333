"""Trials of Optuna that are runs of a job, and go on after a kill."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatbus.errors import JobError
from hatbus.jobs import prepare, read_job, run, show_log
from hatbus_optuna.optuna_pruning import TRIAL, Given

if TYPE_CHECKING:
    import optuna


def lasting(
    url: str, heartbeat: int = 60, retries: int | None = None
) -> optuna.storages.RDBStorage:
    """A storage in which a trial whose process was killed is tried again, with its parameters.

    Args:
        url: of the database, ``"sqlite:///sweep.db"``.
        heartbeat: seconds between signs of life; a trial that gave none for twice as long is
            tried again by whichever process of the study begins a trial next.
        retries: how often; None: as often as it is killed.
    """
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

    with _experiments():
        again = RetryHeartbeatStaleTrialCallback(retries, inherit_intermediate_values=True)
        return RDBStorage(
            url,
            heartbeat_interval=heartbeat,
            grace_period=2 * heartbeat,
            heartbeat_stale_trial_callback=again,
        )


def name_of(trial: Any) -> str:
    """``"trial-0007"``, the run's folder: by the number of the first try, which a retry goes on."""
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    # only a frozen trial knows of what it is a retry
    study = getattr(trial, "study", None)
    frozen = trial if study is None else study.get_trials(deepcopy=False)[trial.number]
    with _experiments():
        first = RetryHeartbeatStaleTrialCallback.retried_trial_number(frozen)
    return f"trial-{trial.number if first is None else first:04d}"


def run_trial(
    trial: Any,
    job: Path | str,
    metric: str,
    options: Sequence[str] = (),
    plugins: Sequence[str] = (),
    value: str = "best",
) -> float:
    """Runs a job as a trial, and gives its value.

    The run's folder is ``trial-<number>`` in the job's ``run_dir``; a trial that was killed goes on
    there, from its newest checkpoint. The plugin ``checkpoint`` is added where the job has none.

    Args:
        trial: that the objective got.
        job: the job file.
        metric: name of a published number, such as ``"val/accuracy"``.
        options: as for ``-o``: ``"run.args.lr=0.01"``.
        plugins: as for ``-p``.
        value: ``"best"`` or ``"last"``.

    Raises:
        optuna.TrialPruned: Optuna ended the run.
        JobError: what is wrong with the job.
        HatbusError: what went wrong in the run.
        SystemExit: a signal ended the run; the trial goes on when the study does.
    """
    if not logging.getLogger("hatbus").handlers:
        show_log(quiet=True)  # the run's own log is whole
    given = Given(trial, [])
    token = TRIAL.set(given)
    try:
        code = run(prepare(job, *settings(trial, job, metric, value, plugins, options)), quiet=True)
    finally:
        TRIAL.reset(token)
    if code:
        raise SystemExit(code)
    return given.plugins[0].result()


def settings(
    trial: Any,
    job: Path | str,
    metric: str,
    value: str,
    plugins: Sequence[str],
    options: Sequence[str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the job says otherwise as a trial: plugins, options.

    Raises:
        JobError: what is wrong with the job.
    """
    enabled = read_job(job, tuple(plugins), tuple(options)).enabled.values()
    uses = {one.use for one in enabled}
    more = ["optuna_pruning", *([] if "checkpoint" in uses else ["checkpoint"])]
    if "optuna_pruning" in uses:
        raise JobError(f"{job} has the plugin 'optuna_pruning'; leave it to run_trial")
    own = [f"run.name={name_of(trial)}", "run.resume=auto"]
    own += [f'optuna_pruning.metric="{metric}"', f"optuna_pruning.value={value}"]
    return (*plugins, *more), (*options, *own)


@contextmanager
def _experiments() -> Iterator[None]:
    """Optuna warns of heartbeats as an experiment of years."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
