"""The allow-list of what administration may load: folders, and names of models."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable
from pathlib import Path

from guerdon.serving.errors import PermissionDenied

ANYTHING = "*"
"""The entry that allows every path and name."""


class AllowedSources:
    """An allow-list for the paths of `LoadModel`.

    Args:
        allowed: folders, below which any folder may be loaded; and names of models, in which
            `*` stands for anything, such as `our-organisation/*`.
        configured: what the settings serve. Where `allowed` is empty, these may be loaded
            again, and what lies beside their folders.

    A file, which is a judge's settings, is allowed where it is named itself, and not for the folder
    that it lies in: it says where texts and a key are sent.
    """

    def __init__(self, allowed: Collection[str], configured: Collection[str] = ()) -> None:
        self._names = tuple(allowed or configured)
        self._files = set(map(_existing, allowed or configured))
        self._folders = tuple(_folders(allowed) if allowed else _beside(configured))

    def check(self, path: str) -> str:
        """The path to load, links followed.

        Raises:
            PermissionDenied: it is neither below an allowed folder nor an allowed name.
        """
        if ANYTHING in self._names:
            return path
        resolved = _existing(path)
        if resolved is not None and resolved.is_file():
            if resolved in self._files:
                return str(resolved)
        elif resolved is not None:
            if any(resolved.is_relative_to(allowed) for allowed in self._folders):
                return str(resolved)
        elif any(fnmatch.fnmatchcase(path, name) for name in self._names):
            return path
        raise PermissionDenied(
            f"path: {path[:200]!r} is not among what may be loaded: "
            "start the server with --load-from FOLDER or NAME"
        )


def _existing(path: str) -> Path | None:
    """What is at a path, links followed; None when nothing is, or nothing can be."""
    try:
        return Path(path).expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return None


def _folders(allowed: Iterable[str]) -> Iterable[Path]:
    return (Path(each).expanduser().resolve() for each in allowed)


def _beside(configured: Iterable[str]) -> Iterable[Path]:
    """The folders that hold the models; not the root of the file system."""
    for each in _folders(configured):
        if each.is_dir():
            yield each.parent if each.parent != Path(each.anchor) else each
