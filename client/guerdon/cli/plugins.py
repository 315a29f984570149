"""Commands of other parts of Guerdon, found by entry point and imported only when asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from guerdon.cli.errors import CommandError

GROUP = "guerdon.commands"
"""The entry-point group: `name = module:typer_app` becomes `guerdon name …`."""

_KNOWN = {
    "compare": ("Put runs of any recipe side by side, in one HTML report.", "trainer"),
    "serve": ("Serve reward models, a policy, or the best of its answers.", "server"),
    "data": ("Make preference pairs of a sampled policy's answers.", "trainer"),
    "eval": ("Evaluate served reward models, and policies.", "trainer"),
    "train": ("Train a reward model, or a policy on files or against rewards.", "trainer"),
}
"""Help and extra of our own, so that `guerdon --help` imports none of them."""


def discover() -> Mapping[str, EntryPoint]:
    """The commands that installed distributions add, by name."""
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    return dict(sorted(found.items()))


def summary(entry: EntryPoint) -> str:
    """One line for `guerdon --help`."""
    known = _KNOWN.get(entry.name)
    return known[0] if known else f"Added by {entry.dist.name if entry.dist else entry.module}."


def load(entry: EntryPoint) -> Any:
    """The command's `typer.Typer`.

    Raises:
        CommandError: the packages it needs are not installed.
    """
    try:
        return entry.load()
    except ModuleNotFoundError as exc:
        raise missing(entry.name, exc) from exc


def missing(name: str, exc: ModuleNotFoundError) -> CommandError:
    """What to install when a command's import failed."""
    extra = _KNOWN[name][1] if name in _KNOWN else name
    return CommandError(
        f"`guerdon {name}` needs {exc.name or 'a package'}, which is not installed: "
        f"pip install '.[{extra}]' in a checkout of guerdon, or its wheel (docs/install.md)"
    )
