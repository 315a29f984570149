"""Makes docs/architecture.md of the modules' docstrings.

python -m tests.contracts.architecture      # writes it; a test compares
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"

HEAD = """\
# Architecture

Every folder and module of Guerdon, by the first sentence of its docstring. This page is made by
`python -m tests.contracts.architecture`; [design.md](design.md) says how the parts work together,
and why they are as they are.

Three trees share one namespace, `guerdon`: `client/` is what everyone has, `server/` adds the
services, `trainer/` the training. Client and trainer reach the services over the network only.
Which folder may import which is held by `tests/contracts/test_layout.py` (the reward
server's and the gateway's) and `tests/contracts/test_trainer_rooms.py`.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for tree in ("client", "server", "trainer"):
        folders = sorted({path.parent for path in (ROOT / tree / "guerdon").rglob("*.py")})
        parts += [_folder(folder) for folder in folders if folder.name != "v1"]
    return "\n".join(parts)


def _folder(folder: Path) -> str:
    lines = [f"## `{folder.relative_to(ROOT)}/`", ""]
    package = folder / "__init__.py"
    if package.exists():
        lines += [_first_sentence(package), ""]
    modules = [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("__")]
    if modules:
        rows = [f"| `{path.stem}` | {_first_sentence(path)} |" for path in modules]
        lines += ["| module | what it is |", "| --- | --- |", *rows, ""]
    return "\n".join(lines)


def _first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<!al)\. ", line)[0].rstrip(".").replace("|", "\\|") + "."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
