#!/usr/bin/env bash
# babysit.sh [--dry-run] RUN -- --config FILE[:ARG] [OPTION OF train.py ...]
# Sees a run to its end: creates the TPU where there is none, sets it up, starts the run, watches it
# every KEFT_POLL seconds, and starts again where it was preempted, rebooted or has stopped, at most
# KEFT_RETRIES times. train.py goes on from its last checkpoint. Deletes nothing that is ACTIVE.

set -euo pipefail
. "$(dirname "$0")/common.sh"
parse 1 "$@"
check_run
need KEFT_PROJECT KEFT_ZONE KEFT_NAME KEFT_ACCELERATOR KEFT_BUCKET

# One word of each: summary.json is the last that train.py writes; the lock is launch.sh's.
look="mkdir -p keft/logs && cd keft || exit
if test -e bucket/runs/$run/summary.json; then echo finished
elif flock -n logs/$run.lock true; then echo stopped \$(cat logs/$run.exit); else echo running; fi"

step() { "$here/$1" ${DRY_RUN:+--dry-run} "${@:2}"; }
start() { step setup.sh && step launch.sh --restart "$run" -- "${TRAIN[@]}"; }
create() { step create.sh && start; }
replace() { step delete.sh "$KEFT_NAME" && create; }

if [[ $DRY_RUN ]]; then
  note "every $KEFT_POLL s:" && states
  note "when $KEFT_NAME is ACTIVE:" && remote "$look"
  note "when it is SUSPENDED or FAILED, all of these; MISSING, from create; ACTIVE, from setup:"
  replace
  exit
fi

tries=0 lost=0
try() { # REASON COMMAND: if there is a try left; what fails shows at the next look
  ((tries++ <= KEFT_RETRIES)) || fail "$1; gave up after $KEFT_RETRIES retries (KEFT_RETRIES)"
  say "$1; $2, try $tries of $((KEFT_RETRIES + 1))"
  "$2" || say "$2 failed"
}
while true; do
  state=$(state_now) || state=UNKNOWN
  case $state in
    MISSING) try "$KEFT_NAME is not there" create ;;
    SUSPENDED | FAILED) try "$KEFT_NAME is $state" replace ;;
    ACTIVE)
      status=$(remote "$look") && lost=0 || status="lost $((++lost))"
      case $'\n'$status$'\n' in
        *"lost $((KEFT_RETRIES + 1))"*) fail "a worker of $KEFT_NAME cannot be reached" ;;
        *lost*) say "a worker of $KEFT_NAME cannot be reached" ;;
        *stopped*) # with 2, and not before this babysit.sh: once more would end alike
          [[ $tries == 0 || $'\n'$status$'\n' != *$'\nstopped 2\n'* ]] ||
            fail "train.py refused its options or data; see keft/logs/$run.log"
          try "$run is not running" start ;;
        *running*) ;;
        *finished*) say "$run is finished: gs://$KEFT_BUCKET/runs/$run" && exit 0 ;;
      esac
      ;;
    *) say "$KEFT_NAME is $state" ;;
  esac
  sleep "$KEFT_POLL"
done
