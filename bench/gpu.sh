#!/usr/bin/env bash
# All that is measured and tested on a GPU, in one command of less than eight minutes.
set -u
cd "$(dirname "$0")/.."

readonly USAGE="usage: [OUT=gpu-results] bash bench/gpu.sh [--quick] [tests] [decode] [training] [fsdp]"
readonly PARTS=(tests decode training fsdp)
out=${OUT:-gpu-results}
device=${DEVICE:-cuda}

print_help() {
    cat <<TEXT
$USAGE

Runs the parts that are named, or all of them: tests/test_cuda.py, bench/gpu_decode.py,
bench/gpu_training.py, and pretrain.py under torchrun with one process (FSDP2). Needs a CUDA device,
torch, transformers, pytest and what mini-llama needs, and no network. One part that fails, or takes
too long, does not stop the others.

  --quick   a dry run: tiny measurements
  OUT       folder of results.json, table.md, log.txt and the tables of single parts
  DEVICE    cuda (DEVICE=cpu is for a dry run without a GPU)

Exit codes: 0 all went well; 1 a part failed; 2 wrong usage.
TEXT
}

fail() {
    echo "gpu.sh: $1" >&2
    exit 2
}

quick=()
chosen=()
for word in "$@"; do
    case "$word" in
    -h | --help) print_help && exit 0 ;;
    --quick) quick=(--quick) ;;
    tests | decode | training | fsdp) chosen+=("$word") ;;
    *) fail "no part $word: $USAGE" ;;
    esac
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${PARTS[@]}")
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
mkdir -p "$out" || fail "cannot write to $out"
out=$(cd "$out" && pwd)
export PYTHONUNBUFFERED=1 MINI_LLAMA_TEST_DEVICE=$device

# part NAME SECONDS COMMAND…: runs it for at most so long, and notes how it ended.
part() {
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    echo "== $name"
    timeout -k 10 "$limit" "$@"
    status=$?
    echo "== $name ended with $status after $((SECONDS - start)) s"
    echo "$name $status $((SECONDS - start))" >>"$out/parts.txt"
}

run_tests() {
    local workers=()
    "$python" -c "import xdist" 2>/dev/null && [ "$device" = cuda ] && workers=(-n 6)
    part tests 100 env OMP_NUM_THREADS=3 "$python" -m pytest -p no:cacheprovider -o addopts= \
        -q -rfEs --tb=short --show-capture=stderr --durations=5 \
        ${workers[@]+"${workers[@]}"} tests/test_cuda.py tests/inference/test_graph_decoding.py
}

run_decode() {
    part decode 150 "$python" bench/gpu_decode.py --device "$device" ${quick[@]+"${quick[@]}"} \
        --json "$out/decode.json" --markdown "$out/decode.md"
}

run_training() {
    part training 170 "$python" bench/gpu_training.py --device "$device" --seconds 150 \
        ${quick[@]+"${quick[@]}"} --json "$out/training.json" --markdown "$out/training.md"
}

run_fsdp() {
    local gpu=() folder steps=40
    [ "$device" = cpu ] || gpu=(--use_gpu)
    [ ${#quick[@]} -eq 0 ] || steps=2
    folder=$(mktemp -d)
    part fsdp 50 "$python" -m torch.distributed.run --standalone --nproc_per_node=1 pretrain.py \
        --input tales:2000 --out "$folder/run" --tokenizer data/demo/demo.model --preset 15m \
        --steps $steps --eval_every $steps --eval_batches 2 --sample_tokens 0 --dtype bfloat16 \
        --shard ${gpu[@]+"${gpu[@]}"}
    cp "$folder/run/metrics.jsonl" "$out/fsdp.jsonl"
    rm -r "$folder"
}

main() {
    rm -f "$out/parts.txt"
    command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
    "$python" -c "import sys, torch; print('Python', sys.version.split()[0], 'torch', torch.__version__)"
    for name in "${chosen[@]}"; do
        "run_$name"
    done
    "$python" bench/gpu_table.py "$out"
}

main 2>&1 | tee "$out/log.txt"
status=${PIPESTATUS[0]}
exit "$status"
