# shellcheck shell=bash disable=SC2034 # used by those who source it
# Settings, options, messages, and the one place where commands are run or, with --dry-run, printed.
# Sourced.
set -euo pipefail
here=$(dirname "$0")
. "$here/env.sh"

OPTIONS=--dry-run GIVEN="" DRY_RUN="" WORDS=() TRAIN=()

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() { say "$@" && exit 1; } # what was asked for did not come about
die() { say "$@" && exit 2; }  # a mistake of the caller
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

# parse COUNT "$@": takes OPTIONS, COUNT words, and all that follows `--`, which is train.py's.
parse() {
  local count=$1
  shift
  while (($#)); do
    case $1 in
      -h | --help) usage && exit 0 ;;
      --) TRAIN=("${@:2}") && break ;;
      -*)
        [[ " $OPTIONS " == *" $1 "* ]] || { usage >&2 && die "no option $1"; }
        GIVEN+=" $1"
        ;;
      *) WORDS+=("$1") ;;
    esac
    shift
  done
  [[ $GIVEN != *--dry-run* ]] || DRY_RUN=1
  ((${#WORDS[@]} == count)) || { usage >&2 && die "${#WORDS[@]} words given, not $count"; }
}

# quoted WORD...: text that a shell reads back as these words.
quoted() {
  local word line="" quote="'" escaped="'\\''"
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//$quote/$escaped}'"
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

run() { if [[ $DRY_RUN ]]; then quoted "$@"; else "$@"; fi; }
note() { [[ ! $DRY_RUN ]] || printf '# %s\n' "$*"; }

queue() { # COMMAND ARGUMENT...: gcloud's queued resources, of this project and zone
  run gcloud compute tpus queued-resources "$@" --project="$KEFT_PROJECT" --zone="$KEFT_ZONE"
}
remote() { queue ssh "$KEFT_NAME" --quiet --node=all --worker=all --command="$1"; } # everywhere
states() { queue list --format='value(name.basename(),state.state)'; }

# The state of the queued resource of exactly this name, or MISSING.
state_now() {
  states | awk -v name="$KEFT_NAME" '$1 == name {state = $2} END {print state ? state : "MISSING"}'
}
