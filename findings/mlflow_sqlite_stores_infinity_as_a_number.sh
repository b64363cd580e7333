#!/usr/bin/env bash
# mlflow's database store gives back an infinite loss as 1.797e+308, while NaN stays NaN.
#
# mlflow-skinny 3.17.2 with sqlalchemy 2.1.9, sqlite.
# What one would expect: a metric is read as it was logged, inf as inf: that a run has diverged is
# just what one looks for.
# What happens: the store replaces inf by the largest float and -inf by its negative; NaN has a
# column of its own and comes back. So math.isinf() and isfinite() over the history call a diverged
# run a finite one, and a mean or a plot's axis over it is ruined by a number instead.
# A way around: compare with sys.float_info.max, or log a count of non-finite steps beside the loss.
# Seen on 2026-11-30:
#   logged [1.5, inf, -inf, nan], read [1.5, 1.7976931348623157e+308, -1.7976931348623157e+308, nan]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q mlflow-skinny==3.17.2 sqlalchemy==2.1.9 alembic==1.20.1
cd "$folder"
cat >expected.txt <<'TEXT'
logged [1.5, inf, -inf, nan], read [1.5, 1.7976931348623157e+308, -1.7976931348623157e+308, nan]
TEXT
venv/bin/python -W ignore - <<'PYTHON' 2>log.txt | tee seen.txt
import mlflow

losses = [1.5, float("inf"), float("-inf"), float("nan")]
mlflow.set_tracking_uri("sqlite:///runs.db")
mlflow.set_experiment("diverges")
with mlflow.start_run() as run:
    for step, loss in enumerate(losses):
        mlflow.log_metric("loss", loss, step=step)
history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
print(f"logged {losses}, read {[metric.value for metric in history]}")
PYTHON
diff expected.txt seen.txt
