"""Measures of how the code is laid out and named: `python -m tests.legibility [FOLDER] [--score]`.

Counts modules, lines, functions, docstrings and names of client/, server/ and trainer/ of a
checkout, without the generated stubs. `--score` also starts a reward server in this process and
counts the files of the project that one Score call runs through.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import queue
import re
import statistics
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TREES = ("client", "server", "trainer")
ROOT = Path(__file__).resolve().parents[1]
NO_SUBJECT = re.compile(
    r"(Of|The same|From|By|To|With|For|Over|As|In|At|On|And|Where|What it|Its|Their)\b"
)
"""How the first line of a docstring begins that makes no sense without what stands around it."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT, help="of the checkout")
    parser.add_argument("--score", action="store_true", help="also follow one Score call")
    given = parser.parse_args()
    rows = measures(given.folder)
    if given.score:
        rows.append(("files of the project that one Score call runs through", files_of_a_score()))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def measures(folder: Path) -> list[tuple[str, object]]:
    """Names and values, in the order in which they are shown."""
    paths = [path for tree in TREES for path in sorted((folder / tree / "guerdon").rglob("*.py"))]
    paths = [path for path in paths if path.parent.name != "v1"]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    nodes = [list(ast.walk(ast.parse(text))) for text in texts]
    every = [node for of_file in nodes for node in of_file]
    lengths = [text.count("\n") for text in texts]
    functions = [node for node in every if isinstance(node, Function)]
    classes = Counter(
        node.name for node in every if isinstance(node, ast.ClassDef) and node.name[0] != "_"
    )
    folders = Counter(path.parent for path in paths)
    fullest, count = folders.most_common(1)[0]
    return [
        ("modules", len(paths)),
        ("lines", sum(lengths)),
        ("lines of a module: median, p90, largest", spread(lengths)),
        ("modules under 60 lines", sum(length < 60 for length in lengths)),
        ("modules over 400 lines", sum(length > 400 for length in lengths)),
        ("modules of the fullest folder", f"{count} ({fullest.relative_to(folder)})"),
        ("lines of a function: median, p90, largest", spread([size(each) for each in functions])),
        ("functions named *_of", sum(each.name.endswith("_of") for each in functions)),
        ("docstrings without a subject", sum(map(lacks_subject, docstrings(every)))),
        ("fmt: skip", sum(text.count("# fmt: skip") for text in texts)),
        ("public class names defined more than once", sum(n > 1 for n in classes.values())),
        ("isinstance or match on settings in the trainer", on_settings(paths, nodes)),
    ]


def spread(numbers: Sequence[int]) -> str:
    """Median, 90th percentile and largest of some numbers."""
    deciles = statistics.quantiles(numbers, n=10)
    return f"{statistics.median(numbers):g}, {deciles[-1]:.0f}, {max(numbers)}"


def size(function: Function) -> int:
    """Lines of a function, its signature and docstring included."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def docstrings(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """The docstrings of modules, classes and functions, and those under attributes."""
    for node in nodes:
        body = getattr(node, "body", [])
        for place, child in enumerate(body if isinstance(body, list) else []):
            if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                continue
            before = body[place - 1] if place else None
            if isinstance(child.value.value, str) and (
                before is None or isinstance(before, ast.Assign | ast.AnnAssign)
            ):
                yield child.value.value


def lacks_subject(docstring: str) -> bool:
    """Whether a docstring's first line can't be understood alone."""
    return bool(NO_SUBJECT.match(docstring.strip()))


def on_settings(paths: Sequence[Path], nodes: Sequence[Sequence[ast.AST]]) -> int:
    """Places of the trainer that ask of which class some settings are."""
    found = 0
    for path, of_file in zip(paths, nodes, strict=True):
        if "trainer" not in path.parts:
            continue
        for node in of_file:
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                found += "ettings" in ast.unparse(node.args[1])
            elif isinstance(node, ast.MatchClass):
                found += "ettings" in ast.unparse(node.cls)
    return found


def files_of_a_score() -> int:
    """Files whose code runs in client and server for one Score call over gRPC, on a tiny model."""
    from tests.support.tiny import tiny_checkpoint

    from guerdon.client import RewardClient
    from guerdon.reward.app import RewardServer
    from guerdon.reward.config import load_config
    from guerdon.reward.kinds import load_model
    from guerdon.reward.models.loader import new_loader

    seen: set[str] = set()

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    with tempfile.TemporaryDirectory() as scratch:
        model = tiny_checkpoint(Path(scratch) / "m", "llama")
        config = load_config(None, {"models": {"m": str(model)}, "port": 0, "http_port": -1})
        ports: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.setprofile(note)  # threads that begin from here on
        server = RewardServer(
            config,  # computing in this process, where files can be noted
            new_loader(lambda f, n, c: load_model(f, name=n, settings=config.engine, check=c)),
        )
        running = threading.Thread(
            target=asyncio.run, args=(server.run(ports.put, signals=False),), daemon=True
        )
        running.start()
        try:
            with RewardClient(f"127.0.0.1:{ports.get().port}") as client:
                client.score_one("m", "a", ["b"])  # what is set up once
                seen.clear()
                sys.setprofile(note)
                client.score_one("m", "a", ["b"])
                sys.setprofile(None)
        finally:
            threading.setprofile(None)
            server.lifecycle.start_draining()
    return len({name for name in seen if any(f"/{tree}/guerdon/" in name for tree in TREES)})


if __name__ == "__main__":
    main()
