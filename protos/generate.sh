#!/usr/bin/env bash
# Writes the Python stubs of protos/ into a folder (default: client/, where they are checked in).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-client}
bin=${PYTHON:+$(dirname "$PYTHON")}
[ -n "$bin" ] && export PATH="$bin:$PATH"
include=$(${PYTHON:-python} -c 'import google.rpc, os; print(os.path.dirname(os.path.dirname(list(google.rpc.__path__)[0])))')
${PYTHON:-python} -W ignore -m grpc_tools.protoc -I protos -I "$include" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
  protos/guerdon/v1/*.proto
