#!/bin/sh
# The benches on one CUDA device: random weights, no network, the tables of docs/performance.md.
#
#   PYTHON=.venv/bin/python bench/gpu.sh [MODEL]
#
# Serving and swapping in bfloat16, learning under bfloat16 autocast; then classify's p99 with and
# without learning on the same device, and how long a label takes (at most a second on ViT-B-16).
# Raw figures go to build/bench/gpu.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
MODEL=${1:-ViT-B-16}
OUT=build/bench/gpu
export PYTHONPATH="$PWD" HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1

"$PYTHON" - <<'PROBE' || exit 2
import sys
try:
    import torch
except ImportError:
    sys.exit("this Python has no torch; set PYTHON to the one of an installed environment")
if not torch.cuda.is_available():
    sys.exit("torch sees no CUDA device here, so nothing was measured")
name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
print(f"device: {name}, compute capability {major}.{minor}, torch {torch.__version__}")
PROBE

status=0 # a row that could not be measured keeps no other from it
"$PYTHON" -m bench.serve --device cuda --model "$MODEL" --out "$OUT" || status=$?
"$PYTHON" -m bench.learn --device cuda --model "$MODEL" --out "$OUT" --no-peers --effect-s 1 \
	--only speed growth commits effect beside || status=$?
exit "$status"
