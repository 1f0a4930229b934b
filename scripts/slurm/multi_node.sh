#!/usr/bin/env bash
# One run on N nodes with G processes each; arguments after the script go to `grok fit`:
#   sbatch --nodes=N --ntasks-per-node=G scripts/slurm/multi_node.sh --config FILE --run_dir DIR \
#       --trainer.num_nodes N --trainer.devices G --trainer.strategy ddp
# GROK names the program; by default that of .venv, or of the PATH.
#SBATCH --job-name=grok
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi # srun asks anew
# The processes meet on the first node, at a port that was free there a moment ago: jobs on one node do not collide.
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_PORT="$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')"
export MASTER_ADDR MASTER_PORT
# SLURM runs a copy of this script; where the original lies, it knows.
here="$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/multi_node\.sh.*|\1|p' | head -n 1)"
# shellcheck source=scripts/slurm/supervise.sh
source "$here/supervise.sh" || exit
# `--signal` without B reaches the processes themselves; one that ends badly must not leave its fellows waiting.
supervise srun --kill-on-bad-exit=1 "${GROK:-grok}" fit "$@"
