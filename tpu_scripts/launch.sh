#!/usr/bin/env bash
# launch.sh [--dry-run] [--restart] RUN -- --config FILE[:ARG] [OPTION OF train.py ...]
# Starts `python train.py` on all workers, apart from the ssh session. The run's directory is
# runs/RUN of KEFT_BUCKET, where it goes on after a preemption; compiled programs are kept in
# compiled/. Output goes to ~/keft/logs/RUN.log. --restart stops a run under way, once it is saved.

set -euo pipefail
. "$(dirname "$0")/common.sh"
OPTIONS+=" --restart"
parse 1 "$@"
check_run
need KEFT_PROJECT KEFT_ZONE KEFT_NAME KEFT_BUCKET

train=$(quoted .venv/bin/python train.py "${TRAIN[@]}" --workdir="bucket/runs/$run")
# Workers see each other's files at once; Orbax names a folder anew when it is whole.
fuse="--implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=100000"
# The lock is held by train.py, however that was started, and goes when it ends.
stop=""
if [[ $GIVEN == *--restart* ]]; then
  stop="if ! flock -n logs/$run.lock true; then
  kill -TERM -- -\$(cat logs/$run.pid) || true
  flock -w 300 logs/$run.lock true || kill -KILL -- -\$(cat logs/$run.pid) || true; fi
"
fi
remote "set -e; cd ~/keft; mkdir -p bucket logs
mountpoint -q bucket || gcsfuse $fuse $KEFT_BUCKET bucket
${stop}flock -w 5 logs/$run.lock true || { echo '$run runs already: --restart' >&2; exit 3; }
rm -f logs/$run.exit
export JAX_COMPILATION_CACHE_DIR=\$PWD/bucket/compiled
nohup setsid flock -w 5 logs/$run.lock bash -c $(quoted "$train; echo \$? > logs/$run.exit") \\
  >> logs/$run.log 2>&1 < /dev/null & echo \$! > logs/$run.pid"
[[ $DRY_RUN ]] || say "$run is started on all workers of $KEFT_NAME; output in keft/logs/$run.log"
