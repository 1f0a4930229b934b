#!/usr/bin/env bash
# Array task i works on line i of a sweep's manifest: sbatch --array=0-7 scripts/slurm/array.sh SWEEP
# (`scripts/slurm/submit SWEEP` asks for exactly what is missing.) sbatch's own options may be given before the script:
# --time, --cpus-per-task, --gres=gpu:1, --signal=B:USR1@300, … GROK names the program; by default .venv, or the PATH.
#SBATCH --job-name=grok
#SBATCH --ntasks=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
sweep="${1:?usage: sbatch --array=RANGE array.sh SWEEP}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
# SLURM runs a copy of this script; where the original lies, it knows.
here="$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/array\.sh.*|\1|p' | head -n 1)"
# shellcheck source=scripts/slurm/supervise.sh
source "$here/supervise.sh" || exit
supervise "${GROK:-grok}" sweep task "$sweep" "$SLURM_ARRAY_TASK_ID"
