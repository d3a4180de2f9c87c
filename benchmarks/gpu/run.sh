#!/usr/bin/env bash
# The GPU list; see README.md beside this file.   run.sh OUT [part ...]
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?give a folder for logs and records}
shift
mkdir -p "$out"
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(tests ops tokenizers encoders embedders trunk generation graphs heads)

if [ -d wheels ]; then
    python3 -m pip install --quiet --no-index --no-deps wheels/*.whl
fi
gpu=$(python3 -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))') || exit 1
records="$out/$(date -u +%F)-$gpu.jsonl"
nvidia-smi --query-gpu=name,driver_version --format=csv >"$out/driver.txt"

failed=()
for part in "${parts[@]}"; do
    echo "$part"
    if [ "$part" = tests ]; then
        timeout 600 python3 -m pytest -q -n 8 --no-shape-checks >"$out/tests.log" 2>&1 || failed+=("$part")
    elif [ "$part" = graphs ]; then
        timeout 600 python3 -m benchmarks.generation graphs --device cuda --json "$records" >"$out/graphs.log" 2>&1 || failed+=("$part")
    elif [ -f "benchmarks/$part.py" ]; then
        timeout 600 python3 -m "benchmarks.$part" --device cuda --json "$records" >"$out/$part.log" 2>&1 || failed+=("$part")
    fi
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; see $out/*.log" >&2
    exit 1
fi
