"""What `make check` makes of pip-audit's answer, with a stand-in for pip-audit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .support import DEPLOY

SOUND = {"name": "sound", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "unknown", "skip_reason": "not on the index"}
FAULT = {"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": [], "description": ""}
FAULTY = {"name": "faulty", "version": "2.0", "vulns": [FAULT]}


@pytest.mark.parametrize(
    ("packages", "flags", "code", "said"),
    [
        ([SOUND, UNKNOWN], [], 0, "audit: 1 packages were audited, 1 could not be"),
        ([SOUND, FAULTY], [], 1, "audit: faulty 2.0: PYSEC-1, mended in 2.1\n"),
        ([UNKNOWN], [], 0, "audit: 0 packages were audited, 1 could not be"),
        ([UNKNOWN], ["--required"], 1, "audit: 0 packages were audited, 1 could not be"),
        (None, [], 0, "was not audited: no route to the index\naudit: 0 packages"),
        (None, ["--required"], 1, "was not audited: no route to the index"),
    ],
)
def test_what_the_audit_says(
    tmp_path: Path, packages: list[dict[str, Any]] | None, flags: list[str], code: int, said: str
) -> None:
    answer = (
        f"print({json.dumps({'dependencies': packages})!r})"
        if packages is not None
        else "raise SystemExit('no route to the index')"
    )
    (tmp_path / "pip_audit.py").write_text(answer)
    done = subprocess.run(
        [sys.executable, DEPLOY / "audit.py", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout
