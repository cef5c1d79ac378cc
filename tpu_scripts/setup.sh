#!/usr/bin/env bash
# setup.sh [--dry-run]
# Installs the project with its extra `tpu` on all workers, in ~/keft: commit KEFT_REF of KEFT_REPO,
# or, where KEFT_WHEEL is set, that wheel with this checkout's train.py and configs. Also installs
# uv, Python 3.11 and gcsfuse where they are missing. Run it again for another commit.

set -euo pipefail
. "$(dirname "$0")/common.sh"
parse 0 "$@"
need KEFT_PROJECT KEFT_ZONE KEFT_NAME KEFT_GCSFUSE

tools='set -e; mkdir -p ~/keft; cd ~/keft
test -x ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh
test -x .venv/bin/python || ~/.local/bin/uv venv --quiet --python 3.11 .venv'
install="\$HOME/.local/bin/uv pip install --quiet --python .venv/bin/python -c constraints.txt"
check=".venv/bin/python -c 'import jax, keft_jax; print(\"keft_jax\", \"on jax\", jax.__version__)'"
deb=gcsfuse_${KEFT_GCSFUSE}_amd64.deb
from=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v$KEFT_GCSFUSE
fuse="command -v gcsfuse >/dev/null || {
  curl -LsSfo /tmp/$deb $from/$deb
  sudo apt-get install -y -q /tmp/$deb; }"

if [[ $KEFT_WHEEL ]]; then
  [[ -f $KEFT_WHEEL ]] || die "KEFT_WHEEL=$KEFT_WHEEL: no such file; make it by 'pip wheel'"
  wheel=$(quoted "keft_jax[tpu] @ file:///tmp/${KEFT_WHEEL##*/}")
  remote "$tools"
  queue scp "$KEFT_WHEEL" "$KEFT_NAME:/tmp/" --quiet --node=all --worker=all
  queue scp --recurse "$here/../train.py" "$here/../configs" "$here/../constraints.txt" \
    "$KEFT_NAME:keft/" --quiet --node=all --worker=all
  remote "set -e; cd ~/keft; $install --reinstall-package keft_jax $wheel
$fuse
$check"
else
  need KEFT_REPO KEFT_REF
  remote "$tools
test -d .git || git init --quiet
git fetch --quiet --depth 1 $(quoted "$KEFT_REPO" "$KEFT_REF")
git checkout --quiet --force FETCH_HEAD
$install --editable '.[tpu]'
$fuse
$check"
fi
