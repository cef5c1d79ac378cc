#!/usr/bin/env bash
# slurm.sh [--dry-run] RUN -- --config FILE[:ARG] [OPTION OF train.py ...]
# Writes RUN.sbatch into this folder and submits it: KEFT_NODES nodes, one process for each of their
# KEFT_GPUS GPUs. Where the time limit or a preemption ends the job, it saves and is queued again,
# at most KEFT_RETRIES times. Run it in the checkout, with the environment's python on the PATH.

set -euo pipefail
. "$(dirname "$0")/common.sh"
parse 1 "$@"
check_run
need KEFT_NODES KEFT_GPUS KEFT_TIME KEFT_RUNS

# jax.distributed gives each task the GPU of its number on the node, so that all see all of them.
# TERM goes to the tasks, not to this script, two minutes before the end: train.py saves.
batch="#!/bin/bash
#SBATCH --job-name=$run
#SBATCH --nodes=$KEFT_NODES
#SBATCH --ntasks-per-node=$KEFT_GPUS
#SBATCH --gpus-per-node=$KEFT_GPUS
#SBATCH --time=$KEFT_TIME${KEFT_PARTITION:+
#SBATCH --partition=$KEFT_PARTITION}
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$run.log
set -euo pipefail
export JAX_COMPILATION_CACHE_DIR=$(quoted "$KEFT_RUNS/compiled")
srun --kill-on-bad-exit=1 $(quoted python train.py "${TRAIN[@]}" --workdir="$KEFT_RUNS/$run")
# Stopped, not finished: once more.
if ! test -e $(quoted "$KEFT_RUNS/$run/summary.json"); then
  ((\${SLURM_RESTART_COUNT:-0} < $KEFT_RETRIES)) && scontrol requeue \"\$SLURM_JOB_ID\"
fi"

if [[ $DRY_RUN ]]; then
  printf "cat > %s <<'KEFT'\n%s\nKEFT\n" "$run.sbatch" "$batch"
else
  printf '%s\n' "$batch" > "$run.sbatch"
fi
run sbatch "$run.sbatch"
