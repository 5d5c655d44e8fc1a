#!/usr/bin/env bash
# One lent H200 session: GPU tests, the GPU sweep, its tables.
#
#   here:                  make wheels           (carried: the lent machine has no pydantic and no network)
#   on the lent machine:   benchmarks/h200.sh    (carry .whl; everything comes back under $OUT)
#   here, afterwards:      tar -xzf .../results.tar.gz, look, commit results/h200/
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:?the folder whose files come back}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl || exit
export PYTHONPATH=/tmp/site:$PWD

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,power.limit --format=csv | tee "$out/gpu.csv"
timeout 180 python3 -m pytest -q -m gpu -p no:cacheprovider tests/train tests/probes 2>&1 | tee "$out/pytest.txt"
# The sweep keeps what it has measured: a run cut off by the machine's limit still reports its finished trials.
timeout "${SWEEP_S:-360}" python3 -m egobench sweep benchmarks/h200.yaml --runs /tmp/runs 2>&1 | tee "$out/sweep.txt"
python3 -m egobench cancel h200 --runs /tmp/runs || true
python3 -m egobench report h200 --runs /tmp/runs --out "$out/reports" --publish results 2>&1 | tee "$out/report.txt"
tar -czf "$out/results.tar.gz" results
