#!/usr/bin/env bash
# create.sh [--dry-run]
# Asks for the TPU as a queued resource named KEFT_NAME, and waits until it is ACTIVE.
# A request that stands already is waited for.

set -euo pipefail
. "$(dirname "$0")/common.sh"
parse 0 "$@"
need KEFT_PROJECT KEFT_ZONE KEFT_NAME KEFT_ACCELERATOR KEFT_RUNTIME

request() {
  local flags=(--accelerator-type="$KEFT_ACCELERATOR" --runtime-version="$KEFT_RUNTIME")
  if ((KEFT_SLICES == 1)); then
    flags+=(--node-id="$KEFT_NAME")
  else
    flags+=(--node-count="$KEFT_SLICES" --node-prefix="$KEFT_NAME")
  fi
  [[ $KEFT_CAPACITY == on-demand ]] || flags+=("--$KEFT_CAPACITY")
  queue create "$KEFT_NAME" "${flags[@]}" --valid-until-duration="${KEFT_WAIT}s" --async --quiet
}

if [[ $DRY_RUN ]]; then
  request
  note "every $KEFT_POLL s, until $KEFT_NAME is ACTIVE:" && states
  exit
fi

state=$(state_now)
if [[ $state == MISSING ]]; then
  request
  say "asked for $KEFT_ACCELERATOR x $KEFT_SLICES ($KEFT_CAPACITY) in $KEFT_ZONE"
fi
for ((waited = 0; waited <= KEFT_WAIT; waited += KEFT_POLL > 0 ? KEFT_POLL : 1)); do
  before=$state
  state=$(state_now) || state=UNKNOWN
  [[ $state == "$before" && $waited -gt 0 ]] || say "$KEFT_NAME is $state after $waited s"
  case $state in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      fail "$KEFT_NAME is $state; look with 'gcloud compute tpus queued-resources describe" \
        "$KEFT_NAME', then 'delete.sh $KEFT_NAME' and ask again"
      ;;
  esac
  sleep "$KEFT_POLL"
done
fail "$KEFT_NAME is still $state after $KEFT_WAIT s (KEFT_WAIT); create.sh waits on"
