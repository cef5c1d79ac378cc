# shellcheck shell=bash disable=SC2034 # used by those who source it
# The settings of all scripts: environment variables, with their defaults. Sourced, never run.
# Put your own in a file of exports and source that before: `. my-pod.sh; tpu_scripts/create.sh`.
set -euo pipefail

: "${KEFT_PROJECT:=}"           # Google Cloud project
: "${KEFT_ZONE:=}"              # zone that has the accelerator, for example us-west4-a
: "${KEFT_NAME:=}"              # name of the queued resource and of its node
: "${KEFT_ACCELERATOR:=}"       # v4-32, v5litepod-16, v5p-32, v6e-16, ...
: "${KEFT_SLICES:=1}"           # slices of that accelerator, joined by the data center's network
: "${KEFT_CAPACITY:=spot}"      # spot (may be preempted), reserved or on-demand
: "${KEFT_BUCKET:=}"            # Cloud Storage bucket, without gs://; holds runs/ and compiled/
: "${KEFT_REPO:=}"              # git URL that the workers can fetch from ...
: "${KEFT_REF:=main}"           # ... and the branch, tag or commit to install,
: "${KEFT_WHEEL:=}"             # or a wheel on this machine, copied to the workers instead
: "${KEFT_GCSFUSE:=2.7.0}"      # version of gcsfuse, by which the workers see the bucket
: "${KEFT_POLL:=60}"            # seconds between two looks at the state
: "${KEFT_WAIT:=86400}"         # seconds that a request may wait for capacity
: "${KEFT_RETRIES:=20}"         # how often babysit.sh, gke.sh and slurm.sh start a run again
: "${KEFT_CLUSTER:=}"           # gke: name of a cluster that xpk made
: "${KEFT_IMAGE:=}"             # gke: container image with the project in /keft
: "${KEFT_STORAGE:=}"           # gke: the bucket as xpk's storage, see docs/pods.md
: "${KEFT_MOUNT:=/bucket}"      # gke: where that storage is mounted
: "${KEFT_NODES:=1}"            # slurm: nodes
: "${KEFT_GPUS:=8}"             # slurm: GPUs, and so processes, on each node
: "${KEFT_TIME:=24:00:00}"      # slurm: time limit of one part of the run
: "${KEFT_PARTITION:=}"         # slurm: partition, where the cluster has no default one
: "${KEFT_RUNS:=runs}"          # slurm: folder of the runs, on a disk that all nodes share

# Image of the virtual machine, by the vendor's table of runtimes for JAX.
case $KEFT_ACCELERATOR in
  v5litepod-*) : "${KEFT_RUNTIME:=v2-alpha-tpuv5-lite}" ;;
  v5p-*) : "${KEFT_RUNTIME:=v2-alpha-tpuv5}" ;;
  v6e-*) : "${KEFT_RUNTIME:=v2-alpha-tpuv6e}" ;;
  *) : "${KEFT_RUNTIME:=tpu-ubuntu2204-base}" ;;
esac

# need NAME...: these settings have a value, and each that has one has one that can be right.
need() {
  local name
  for name; do [[ ${!name} ]] || die "$name is not set; export it (tpu_scripts/env.sh tells)"; done
  fits KEFT_NAME "$LABEL" "lower-case letters, digits and -, at most 40"
  fits KEFT_ACCELERATOR '(v4|v5litepod|v5p|v6e)-[0-9]+' "v4-N, v5litepod-N, v5p-N or v6e-N"
  fits KEFT_CAPACITY 'spot|reserved|on-demand' "spot, reserved or on-demand"
  fits KEFT_BUCKET '[a-z0-9][-a-z0-9._]+' "a bucket's name, without gs://"
  for name in SLICES NODES GPUS; do fits "KEFT_$name" '[1-9][0-9]*' "a whole number from 1"; done
  for name in POLL WAIT RETRIES; do fits "KEFT_$name" '[0-9]+' "a whole number"; done
}
LABEL='[a-z]([-a-z0-9]{0,38}[a-z0-9])?' # names that Google Cloud and Kubernetes take
fits() { [[ -z ${!1} || ${!1} =~ ^($2)$ ]] || die "$1=${!1}: not $3"; }
# check_run: the first word is a name for a run, and train.py is told what to train, but not where.
check_run() {
  run=${WORDS[0]} && fits run "$LABEL" "lower-case letters, digits and -, at most 40"
  [[ " ${TRAIN[*]-}" == *" --config"* ]] || die "no --config; options of train.py stand after --"
  [[ " ${TRAIN[*]-}" != *" --workdir"* ]] || die "--workdir follows from the run's name"
  [[ " ${TRAIN[*]-} " != *" --dry-run "* ]] || die "--dry-run stands before --, for this script"
}
