#!/usr/bin/env bash
# DuckDB reads a CSV log whose first 20,480 losses are whole and rounds every later loss to a whole number.
#
# duckdb 2.0.1.
# What one would expect: a column that is guessed to be whole from the first rows and turns out to
# hold decimals is read as DOUBLE, or is an error that names the row, as polars gives.
# What happens: the sniffer looks at 20,480 rows, takes the column for BIGINT, and casts what comes
# later: 0.5 becomes 1, 0.25 becomes 0. No error, no warning. A log of a long run whose metric is 0 (or 1)
# until it begins to move (a loss with a weight that is switched on late, an accuracy of rare hits) is wrong from there on.
# Ways around: read_csv(file, sample_size=-1), or types={'loss': 'DOUBLE'}.
# Seen on 2026-11-30:
#   last rows: [(30000, 1), (30001, 0)], loss is BIGINT
#   sample_size=-1: [(30000, 0.5), (30001, 0.25)], loss is DOUBLE
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q duckdb==2.0.1
cd "$folder"
cat >expected.txt <<'TEXT'
last rows: [(30000, 1), (30001, 0)], loss is BIGINT
sample_size=-1: [(30000, 0.5), (30001, 0.25)], loss is DOUBLE
TEXT
venv/bin/python - <<'PYTHON' | tee seen.txt
import duckdb

with open("log.csv", "w") as file:
    file.write("step,loss\n")
    file.writelines(f"{step},0\n" for step in range(30000))
    file.write("30000,0.5\n30001,0.25\n")
for name, source in (
    ("last rows", "'log.csv'"),
    ("sample_size=-1", "read_csv('log.csv', sample_size=-1)"),
):
    rows = duckdb.sql(f"select step, loss from {source} where step >= 30000 order by step")
    print(f"{name}: {rows.fetchall()}, loss is {rows.types[1]}")
PYTHON
diff expected.txt seen.txt
