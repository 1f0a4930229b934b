#!/usr/bin/env bash
# Groks on one GPU within a budget of seconds: two-hop composition at the size of Wang et al. 2024 with phi 18, then with
# phi 7.2, then the recursive transformer in the natural regime of He et al. 2026 at medium size. Each run takes what is left
# of the budget, saves and stops when it is used up; the same command goes on where it stopped, and skips what is finished.
#   scripts/benchmark/gpu_grok.sh SECONDS [DIRECTORY]        by default runs/gpu_grok; PYTHON chooses the interpreter,
# and EXTRA is added to every `grok fit` (a trial at another size)
set -uo pipefail
cd "$(dirname "$0")/../.."
budget="${1:?give a budget in seconds}"
out="${2:-runs/gpu_grok}"
python="${PYTHON:-python}"
accelerator="${ACCELERATOR:-gpu}"
read -r -a extra <<<"${EXTRA:-}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
began="$(date +%s)"
# grok_within NAME ARGUMENTS…: one run in what is left of the budget, 20 seconds kept for saving and figures
grok_within() {
    local name="$1" left limit status=0
    shift
    left=$((budget - ($(date +%s) - began) - 20))
    if [ "$left" -lt 20 ]; then
        echo "== $name: no time left; the same command goes on here"
        return 75
    fi
    echo "== $name: at most $left s"
    printf -v limit '00:%02d:%02d:%02d' $((left / 3600)) $((left / 60 % 60)) $((left % 60)) # days:hours:minutes:seconds
    "$python" -m grok fit --run_dir "$out/$name" --trainer.accelerator "$accelerator" --trainer.devices 1 \
        --trainer.max_time "$limit" --model.fast true "$@" "${extra[@]}" || status=$?
    [ "$status" -eq 0 ] || [ "$status" -eq 75 ] || echo "-- $name: status $status"
    return "$status"
}
wang=(--config configs/wang2024/composition.yaml --trainer.precision bf16-mixed --model.optimizer.fused true
    --model.net.dropout 0 --lens.enabled false --tracing.enabled false --seed_everything 42)
status=0
grok_within wang_phi18 "${wang[@]}" --trainer.max_steps 60000 --evaluation.every 1000 --evaluation.until null \
    --evaluation.then null --series.every 10000 --series.until null --series.then null --monitor.stop_after 2000 || status=$?
grok_within wang_phi7.2 "${wang[@]}" --data.phi 7.2 --trainer.max_steps 400000 --evaluation.every 2000 \
    --evaluation.until null --evaluation.then null --series.every 50000 --series.until null --series.then null \
    --last.every 5000 --monitor.stop_after 10000 || status=$?
grok_within recursive_natural --config configs/he2026/pretrain_medium.yaml --data.encoding grok.data.FillIn \
    --model.net grok.models.RecursiveTransformer --model.net.width 384 --model.net.prefix 0 --model.net.activations bfloat16 \
    --model.objective grok.training.Stablemax --model.objective.precision float32 --model.reduction queries \
    --model.ema_decay 0.999 --model.clip null --model.decay all --trainer.max_steps 100000 --lens.enabled false \
    --tracing.enabled false || status=$?
exit "$status"
