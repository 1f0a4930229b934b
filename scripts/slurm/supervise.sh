# Sourced by the batch scripts: supervise COMMAND… runs it, passes signals on, waits for it, and requeues the job.
# Time limit and preemption signal a batch script; grok answers by saving at the end of its block and exiting with 75.

most_kills="${GROK_MOST_KILLS:-5}"
signals=0

pass_on() {
    signals=$((signals + 1))
    kill -s "$1" "$child" 2>/dev/null
}

supervise() {
    trap 'pass_on USR1' USR1
    trap 'pass_on TERM' TERM
    "$@" &
    child=$!
    local before status
    while true; do
        before=$signals
        wait "$child"
        status=$?
        [ "$before" -eq "$signals" ] && break # else a trap has ended the wait, not the child
    done
    case "$status" in
        75) requeue "$status" "stopped by a signal, everything is saved" ;;
        138 | 143) requeue "$status" "stopped by a signal before training had begun" ;; # 128 + SIGUSR1, SIGTERM
        137) # killed by hand, or out of memory: once more may help, for ever does not
            [ "${SLURM_RESTART_COUNT:-0}" -lt "$most_kills" ] && requeue "$status" "killed"
            echo "supervise: killed after ${SLURM_RESTART_COUNT:-0} restarts and not requeued; submit again when mended"
            ;;
    esac
    exit "$status"
}

requeue() {
    # By array and index: the plain number of one of the tasks stands for the whole array.
    local job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"
    job="${job:-$SLURM_JOB_ID}"
    # Not a job that was cancelled, or that SLURM itself is requeueing: it is no longer running.
    if [ "$(squeue --noheader --jobs="$job" --format=%T 2>/dev/null)" != RUNNING ]; then
        echo "supervise: status $1 ($2)"
        exit "$1"
    fi
    echo "supervise: status $1 ($2): requeueing, it goes on from its last checkpoint"
    scontrol requeue "$job" || exit "$1"
    exit 0
}
