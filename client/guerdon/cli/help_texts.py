"""Docstrings as helps: paragraphs that fill the terminal, and brackets that are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def asks_for_help(args: Sequence[str]) -> bool:
    """Whether these arguments end in a help's text."""
    return not args or not {"-h", "--help"}.isdisjoint(args)


def unwrap(command: Any) -> None:
    """Join the lines of each paragraph of a command's help, and of those below it.

    Typer keeps the line ends of all paragraphs but the first, and takes `[text]` for markup.
    """
    from rich.markup import escape  # slow to import, and needed for a help only

    if command.help:
        paragraphs = command.help.split("\n\n")
        command.help = escape("\n\n".join(" ".join(each.split("\n")) for each in paragraphs))
    for below in getattr(command, "commands", {}).values():
        unwrap(below)
