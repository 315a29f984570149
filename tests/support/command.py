"""The command as a real process, and rows on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

GUERDON = [sys.executable, "-m", "guerdon.cli.main"]

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
Start = Callable[..., "subprocess.Popen[bytes]"]


def environment(**more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GUERDON_")}
    return {**clean, "COLUMNS": "100", "NO_COLOR": "1", **more}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(data: bytes | Path) -> list[dict[str, Any]]:
    text = data.read_bytes() if isinstance(data, Path) else data
    return [json.loads(line) for line in text.splitlines()]
