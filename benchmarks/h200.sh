#!/usr/bin/env bash
# What an H200 makes of the training step, in one command:
#
#   benchmarks/h200.sh [OUT]        OUT: a new folder for results.jsonl, table.txt and pictures
#
# PYTHON        interpreter with keft_jax[gpu] (default: python; without keft_jax's needs, one is
#               made in runs/h200-venv by pip)
# TORCH_PYTHON  one with PyTorch and transformers, for the same step there (default: PYTHON or
#               python3, where they have both)
# BASELINES     folder of bert_torch_hf.py (default: ../shared/baselines)
# SMALL=1       everything at a size that a CPU does in minutes: a test of this script alone
#
# A case that fails is told at the end, by status 1; the others are measured.

set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/h200-$(date +%Y%m%d-%H%M%S)}
python=${PYTHON:-python}
baselines=${BASELINES:-../shared/baselines}
mkdir -p "$out"
results=$out/results.jsonl failed=()
: > "$results"

die() { echo "${0##*/}: $*" >&2 && exit 2; }
has() { "$1" -c "import $2" &> /dev/null; } # INTERPRETER MODULES

if ! has "$python" "jax, keft_jax.bench.run"; then
  [[ ! ${PYTHON:-} ]] || die "PYTHON=$PYTHON cannot import keft_jax; pip install '.[gpu]' there"
  python=runs/h200-venv/bin/python
  [[ -x $python ]] || python3 -m venv runs/h200-venv
  "$python" -m pip install --quiet --editable ".[gpu]"
fi
gpu='import jax, sys; sys.exit(jax.default_backend() != "gpu")'
[[ ${SMALL:-} ]] || "$python" -c "$gpu" > /dev/null || die "jax sees no GPU; SMALL=1 needs none"

torch="" candidates=("${TORCH_PYTHON:-$python}")
[[ ${TORCH_PYTHON:-} ]] || candidates+=(python3)
for one in "${candidates[@]}"; do
  [[ $torch ]] || ! has "$one" "torch, transformers" || torch=$one
done
missing=""
[[ -f $baselines/bert_torch_hf.py ]] || missing="no $baselines/bert_torch_hf.py; set BASELINES"
[[ $torch ]] || missing="no torch and transformers in ${candidates[*]}; set TORCH_PYTHON"

if [[ ${SMALL:-} ]]; then
  base=tiny mini=tiny device=cpu compile=0 steps=3
  short=(4 32) long=(2 64) wide=(8 32)
  ours=(--encoder.dtype float32) theirs=float32 tokens=(--tokens 512 --words 1024 --width 64)
else
  base=base mini=minilm device=cuda compile=1 steps=30
  short=(256 128) long=(64 512) wide=(512 128) # texts x tokens
  # cuDNN has no dropout on attention weights; the other dropouts stay.
  ours=(--encoder.dtype bfloat16 --encoder.attention cudnn) theirs=bfloat16 tokens=()
fi

# record CASE COMMAND...: the command's last line, a JSON object, with the name of the case.
record() {
  local name=$1
  shift
  echo "== $name: $*" >&2
  "$@" | tee "$out/$name.log" | tail -1 | "$python" -c '
import json, sys
line = sys.stdin.read() or sys.exit("no result")
print(json.dumps({"case": sys.argv[1], **json.loads(line)}))' "$name" >> "$results" ||
    failed+=("$name")
}

# bench CASE CONFIG TEXTS TOKENS [OPTION...]
bench() {
  local name=$1 config=$2 batch=$3 length=$4
  shift 4
  record "$name" "$python" -c 'from keft_jax.cli import main; main()' bench \
    --config "configs/bench.py:$config" --optim.batch "$batch" --data.buckets "$length" \
    --steps "$steps" --warmup 3 "${ours[@]}" "$@"
}

# torch CASE SIZE TEXTS TOKENS [OPTION...]: the same step in PyTorch.
torch() {
  [[ ! $missing ]] || return 0
  local name=$1 size=$2 batch=$3 length=$4
  shift 4
  record "$name" "$torch" "$baselines/bert_torch_hf.py" --size "$size" --batch "$batch" \
    --seq "$length" --device "$device" --dtype "$theirs" --attn sdpa --compile "$compile" \
    --fused-adam 1 --steps "$steps" --warmup 3 "$@"
}

[[ ! $missing ]] || record pytorch echo "{\"missing\": \"$missing\"}"
bench base_128 "${base}_mlm" "${short[@]}" --no-parts
torch torch_base_128 "$base" "${short[@]}"
bench base_512 "${base}_mlm" "${long[@]}" --no-parts
torch torch_base_512 "$base" "${long[@]}"
bench plain_128 "${base}_mlm" "${short[@]}" --no-parts --encoder.dropout 0
torch torch_plain_128 "$base" "${short[@]}" --dropout 0
bench gnn_128 "${base}_gnn" "${short[@]}" --plot "$out/gnn_128.png"
bench gnn_512 "${base}_gnn" "${long[@]}" --plot "$out/gnn_512.png"
bench teacher_128 "${base}_teacher" "${short[@]}" --plot "$out/teacher_128.png"
bench teacher_512 "${base}_teacher" "${long[@]}" --plot "$out/teacher_512.png"
bench minilm_128 "${mini}_mlm" "${wide[@]}" --no-parts
torch torch_minilm_128 "$mini" "${wide[@]}"
record embedding "$python" benchmarks/embedding_gradient.py "${tokens[@]}"

"$python" benchmarks/h200_table.py "$results" | tee "$out/table.txt"
((${#failed[@]} == 0)) || { echo "failed: ${failed[*]}" >&2 && exit 1; }
