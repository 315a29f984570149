#!/usr/bin/env bash
# Writes the Python stubs of protos/ into client/ and server/, where they are checked in.
# With --check it writes nothing and fails if the checked-in stubs differ.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
PATH=$(dirname "$(command -v "$python")"):$PATH # protoc finds its mypy plugin there
ours=guerdon/v1 # in client/
tei=guerdon/reward/wire/tei/v1 # in server/: inside our namespace, whatever the proto's package

# generate CLIENT SERVER
generate() {
  protoc "$1" -I protos protos/$ours/*.proto
  protoc "$2" -I $tei=protos/tei/v1 protos/tei/v1/*.proto
}

# protoc FOLDER ARGUMENTS
protoc() {
  local to=$1
  shift
  "$python" -W ignore -m grpc_tools.protoc "$@" \
    --python_out="$to" --grpc_python_out="$to" --mypy_out="quiet:$to" --mypy_grpc_out="quiet:$to"
}

# check CHECKED_IN FRESH
check() {
  if ! diff -r -x __init__.py -x __pycache__ -x py.typed "$1" "$2"; then
    echo "the stubs in $1 are not those of protos/: run 'make protos' and commit" >&2
    exit 1
  fi
}

case ${1:-} in
  "") generate client server ;;
  --check)
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    generate "$fresh" "$fresh"
    check client/$ours "$fresh/$ours"
    check server/$tei "$fresh/$tei"
    ;;
  *) echo "usage: protos/generate.sh [--check]" >&2; exit 2 ;;
esac
