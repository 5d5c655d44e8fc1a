#!/usr/bin/env bash
# One lent H200: GPU tests, the GPU suite, the peer. Three calls, each under ten minutes, in any order.
#
#   here, first:           make wheels                           (the lent machine has no network)
#   on the lent machine:   benchmarks/h200.sh tests|sweep|peer   (name the kind nvidia-h200: a first call gets an H100;
#                          carry .whl; $OUT/results.tar.gz comes back; BUDGET_S=<seconds this call may take, less 60>)
#   here, afterwards:      benchmarks/h200.sh keep FILE...       (unpacks into runs/, reports, publishes to results/)
#   without a GPU:         REHEARSE=1 benchmarks/h200.sh tests|sweep|peer   (the same path, tiny models, this CPU)
#
# A call that was cut off goes on where it was: put its results.tar.gz into .h200/ (ignored by git) and carry that too.
# What failed is not run again, unless RETRY=crash,oom,hang,cancelled says so.
set -uo pipefail
cd "$(dirname "$0")/.."
part=${1:?tests, sweep, peer or keep}
rehearse=${REHEARSE:-}
ANY_GPU=${ANY_GPU:-}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=python3
[ -z "$rehearse" ] || python=.venv/bin/python
budget_s=${BUDGET_S:-540}
left() { echo $((budget_s - SECONDS)); }

keep() { # archives of earlier calls -> runs/, reports/, results/
    for archive in "$@"; do tar -xzf "$archive"; done
    for sweep in gpu_suite gpu_accuracy; do
        [ ! -d "runs/$sweep" ] || .venv/bin/python -m egobench report "$sweep" --publish results
    done
    mkdir -p results/h200 && cp -v runs/h200/*.json runs/h200/*.txt results/h200/
    .venv/bin/python -m egobench.plan.axes_page --write
}

install() { # the carried wheels of what is missing here, and of nothing else
    [ -z "$rehearse" ] || return 0
    missing=$($python - <<'PY'
import importlib.metadata as found, pathlib
for wheel in sorted(pathlib.Path(".whl").glob("*.whl")):
    try:
        found.version(wheel.name.split("-")[0])
    except found.PackageNotFoundError:
        print(wheel)
PY
    )
    [ -z "$missing" ] || $python -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target /tmp/site $missing || exit 1
    export PYTHONPATH=$PYTHONPATH:/tmp/site
}

matrix() { # the file of a matrix, made small in a rehearsal
    if [ -n "$rehearse" ]; then $python benchmarks/rehearse.py "benchmarks/$1.yaml" "$runs/rehearsal"
    else echo "benchmarks/$1.yaml"; fi
}

stage() { # a matrix, which of its cells, seconds at most: runs what is missing of them, as long as time is left
    local file seconds=${3:-$budget_s}
    file=$(matrix "$1")
    [ "$seconds" -lt "$(left)" ] || seconds=$(left)
    [ "$seconds" -gt 30 ] || { echo "no time left for $*"; return 0; }
    timeout "$seconds" "$python" -m egobench sweep "$file" ${2:+--only "$2"} --retry "${RETRY:-cancelled}" --runs "$runs" 2>&1 |
        tee -a "$notes/$1.txt"
    "$python" -m egobench cancel "$1" --runs "$runs" >/dev/null 2>&1 || true
    bring_back >/dev/null  # what follows may be killed
}

bring_back() { # everything but what is large and can be made again
    # Not the data sets, which the next call on this machine reads; the archive leaves them out.
    find "$runs" -path "$runs/.cache" -prune -o -size +12M -print -delete
    tar -czf "$out/results.tar.gz" -C "$(dirname "$runs")" --exclude=.cache --exclude=rehearsal --exclude=trainer runs
    ls -l "$out/results.tar.gz"
}

if [ "$part" = keep ]; then shift; keep "$@"; exit; fi

out=${OUT:?the folder whose files come back}
top=${TOP:-/tmp/h200}
runs=$top/runs notes=$top/runs/h200
mkdir -p "$notes"
install
for archive in .h200/*.tar.gz; do [ ! -f "$archive" ] || tar -xzf "$archive" -C "$top"; done
if [ -z "$rehearse$ANY_GPU" ] && ! nvidia-smi --query-gpu=name --format=csv,noheader | grep -q H200; then
    echo "this is no H200; ANY_GPU=1 runs it all the same (results/ says which GPU it was)" >&2
    exit 2
fi
[ -n "$rehearse" ] || nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,power.limit --format=csv |
    tee "$notes/gpu.txt"
case $part in
tests)
    $python benchmarks/ceiling.py --json "$notes/ceiling.json" | tee "$notes/ceiling.txt"
    if [ -n "$rehearse" ]; then only=--collect-only; else only=; fi
    # By file: what other tests import may be missing here.
    timeout 300 "$python" -m pytest -q -m gpu $only -p no:cacheprovider \
        $(grep -rl "mark\.gpu" tests --include="test_*.py") 2>&1 | tee "$notes/pytest.txt"
    stage gpu_accuracy
    ;;
sweep)
    # Each in turn, so that no question goes without an answer; what is left over goes to what is missing.
    stage gpu_suite workload=internvl3-2b-question 220
    stage gpu_suite workload=internvl3-2b-mfu 160
    stage gpu_suite workload=internvl3-8b-lora
    stage gpu_suite
    "$python" -m egobench status gpu_suite --runs "$runs"
    ;;
peer)
    timeout "$(left)" "$python" benchmarks/peer_ratio.py "$(matrix gpu_peer)" --out "$runs/peer" \
        --seconds "$(($(left) - 45))" --pairs "${PAIRS:-3}" 2>&1 | tee -a "$notes/peer.txt"
    cp "$runs/peer/peer.json" "$notes/peer.json"
    ;;
*) echo "tests, sweep, peer or keep, not $part" >&2; exit 2 ;;
esac
bring_back
