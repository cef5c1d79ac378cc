#!/usr/bin/env bash
# gke.sh [--dry-run] RUN -- --config FILE[:ARG] [OPTION OF train.py ...]
# Submits the run to a GKE cluster as a workload of xpk, KEFT_SLICES slices of KEFT_ACCELERATOR.
# Kubernetes starts it again after an eviction, at most KEFT_RETRIES times.

set -euo pipefail
. "$(dirname "$0")/common.sh"
parse 1 "$@"
check_run
need KEFT_PROJECT KEFT_ZONE KEFT_CLUSTER KEFT_ACCELERATOR KEFT_IMAGE KEFT_STORAGE

workdir=$KEFT_MOUNT/runs/$run
train=$(quoted python train.py "${TRAIN[@]}" --workdir="$workdir")
# Eviction sends TERM to this shell: it is handed on, train.py saves and leaves with 0, and where
# summary.json is not there yet, 42 has xpk start the run again.
command="cd /keft || exit; trap 'kill -TERM \$!' TERM; $train & wait \$! || wait \$! || exit;"
command+=" test -e $(quoted "$workdir/summary.json") || exit 42"
run xpk workload create --project="$KEFT_PROJECT" --zone="$KEFT_ZONE" --cluster="$KEFT_CLUSTER" \
  --workload="$run" --tpu-type="$KEFT_ACCELERATOR" --num-slices="$KEFT_SLICES" \
  --docker-image="$KEFT_IMAGE" --storage="$KEFT_STORAGE" --max-restarts="$KEFT_RETRIES" \
  --restart-on-exit-codes=1,75 --termination-grace-period-seconds=120 \
  --env="JAX_COMPILATION_CACHE_DIR=$KEFT_MOUNT/compiled" --command="$command"
