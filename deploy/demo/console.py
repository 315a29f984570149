"""What the demo prints, and how."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]

console = Console(width=None if sys.stdout.isatty() else 120)

_number = itertools.count(1)


class DemoFailed(Exception):
    """A step failed; the text says which and where to look."""


def heading(text: str) -> None:
    """A numbered line between the steps."""
    console.print(f"\n[bold cyan]{next(_number)}.[/bold cyan] [bold]{text}[/bold]", highlight=False)


def relative(path: Path) -> str:
    """A path as a user in the repository would type it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def shorten(word: str) -> str:
    """A command's word with the repository's path taken out."""
    return word.replace(f"{ROOT}/", "")


def minutes(seconds: float) -> str:
    """A time as a person says it."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def clip(text: str, width: int) -> str:
    """Text on one line, at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
