# Sourced by the batch scripts: supervise COMMAND… runs it, passes signals on, waits for it, and requeues the job.
# Time limit and preemption signal a batch script; grok answers by saving at the end of its block and exiting with 75.

most_kills="${GROK_MOST_KILLS:-5}"
own="$(dirname "${BASH_SOURCE[0]}")/../../.venv/bin/grok"
if [ -z "${GROK:-}" ] && [ -x "$own" ]; then GROK="$own"; fi
signals=0
early=

pass_on() {
    signals=$((signals + 1))
    early="$1"
    kill -s "$1" "${child:-}" 2>/dev/null
}

supervise() {
    trap 'pass_on USR1' USR1
    trap 'pass_on TERM' TERM
    "$@" &
    child=$!
    [ -n "$early" ] && kill -s "$early" "$child" # it came before there was a child to pass it on to
    local before status
    while true; do
        before=$signals
        wait "$child"
        status=$?
        [ "$before" -eq "$signals" ] && break # else a trap has ended the wait, not the child
    done
    case "$status" in
        75) requeue "$status" "stopped by a signal, everything is saved" ;;
        # 128 + SIGKILL: by hand, or out of memory; + SIGUSR1, SIGTERM: before training had begun, as always happens when
        # --time leaves less than --signal and the start need. Once more may help, for ever does not.
        137 | 138 | 143)
            [ "${SLURM_RESTART_COUNT:-0}" -lt "$most_kills" ] && requeue "$status" "killed by signal $((status - 128))"
            echo "supervise: killed by signal $((status - 128)) after ${SLURM_RESTART_COUNT:-0} restarts, not requeued;" \
                "submit again with more memory or a longer --time"
            ;;
    esac
    exit "$status"
}

requeue() {
    # By array and index: the plain number of one of the tasks stands for the whole array.
    local job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"
    job="${job:-$SLURM_JOB_ID}"
    # Not a job that was cancelled, or that SLURM itself is requeueing: it is no longer running. Past its time limit it
    # is not either, but nobody else will requeue it.
    case "$(squeue --noheader --jobs="$job" --format='%T %r' 2>/dev/null)" in
        RUNNING* | "COMPLETING TimeLimit") ;;
        *) echo "supervise: status $1 ($2)" && exit "$1" ;;
    esac
    echo "supervise: status $1 ($2): requeueing, it goes on from its last checkpoint"
    scontrol requeue "$job" || exit "$1"
    exit 0
}
