#!/usr/bin/env bash
# Writes the Python stubs of protos/ into client/, where they are checked in.
# With --check it writes nothing and fails if the checked-in stubs differ.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
PATH=$(dirname "$(command -v "$python")"):$PATH # protoc finds its mypy plugin there

generate() {
  "$python" -W ignore -m grpc_tools.protoc -I protos \
    --python_out="$1" --grpc_python_out="$1" --mypy_out="quiet:$1" --mypy_grpc_out="quiet:$1" \
    protos/guerdon/v1/*.proto
}

case ${1:-} in
  "") generate client ;;
  --check)
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    generate "$fresh"
    if ! diff -r -x __init__.py -x __pycache__ -x py.typed client/guerdon/v1 "$fresh/guerdon/v1"; then
      echo "the stubs in client/guerdon/v1 are not those of protos/: run 'make protos' and commit" >&2
      exit 1
    fi
    ;;
  *) echo "usage: protos/generate.sh [--check]" >&2; exit 2 ;;
esac
