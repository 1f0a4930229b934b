#!/usr/bin/env bash
# Every benchmark that a GPU changes, one after the other, in less than 9 minutes on one H200; writes their JSON and the
# logs to a directory (by default runs/benchmark/gpu). A benchmark that fails or runs out of its time does not stop the rest.
#   scripts/benchmark/gpu_all.sh [DIRECTORY]        PYTHON chooses the interpreter
set -uo pipefail
cd "$(dirname "$0")/../.."
out="${1:-runs/benchmark/gpu}"
python="${PYTHON:-python}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
failed=0
# measure SECONDS NAME ARGUMENTS…
measure() {
    local limit="$1" name="$2"
    shift 2
    echo "== $name $*"
    local script="${name%%-*}"
    timeout "$limit" "$python" "scripts/benchmark/$script.py" "$@" --device cuda --json "$out/$name.json" 2>&1 | tee "$out/$name.log"
    [ "${PIPESTATUS[0]}" -eq 0 ] || { echo "-- $name: failed, or out of time"; failed=1; }
}
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader | tee "$out/gpu.txt"
measure 110 step-looped --sizes 8 4x2 quickstart --forms bare ours
measure 60 step-reference --sizes 8 --forms reference ours
measure 130 step-recursive --sizes compact paper --forms bare ours --steps 50
measure 60 lightning_overhead --sizes quickstart 8 --steps 50 --repeats 3
measure 50 ensemble --members 1 8 64 --steps 20 --repeats 3
measure 40 tracing --repeats 2
measure 40 recursive
measure 30 data --entities 1000 100000
exit "$failed"
