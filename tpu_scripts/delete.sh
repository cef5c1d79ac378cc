#!/usr/bin/env bash
# delete.sh [--dry-run] NAME
# Deletes the queued resource NAME with its nodes. NAME must be what KEFT_NAME says, to the letter,
# and be there; nothing else is touched. The bucket with the runs stays.

set -euo pipefail
. "$(dirname "$0")/common.sh"
parse 1 "$@"
need KEFT_PROJECT KEFT_ZONE KEFT_NAME

[[ ${WORDS[0]} == "$KEFT_NAME" ]] ||
  die "asked to delete '${WORDS[0]}', but KEFT_NAME is '$KEFT_NAME'; nothing was deleted"
if [[ ! $DRY_RUN ]]; then
  state=$(state_now)
  [[ $state != MISSING ]] || die "no queued resource '$KEFT_NAME' in $KEFT_ZONE of $KEFT_PROJECT"
fi
queue delete "$KEFT_NAME" --force --quiet
