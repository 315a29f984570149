"""Which files an update by shared path may read: safetensors below folders that were named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from guerdon.serving.errors import InvalidRequest, UpdateRefused

FIELD = "begin.shared_path.path"


def shared_files(path: str, folders: Sequence[Path]) -> list[Path]:
    """The files that a shared path stands for, links followed.

    Args:
        path: a safetensors file, or a folder with model*.safetensors.
        folders: below one of which every file must really lie.

    Raises:
        UpdateRefused: no folder was named, so no path is allowed.
        InvalidRequest: the path lies elsewhere, isn't there, or holds no such file. Of what
            lies elsewhere nothing is told, not even whether it exists.
    """
    if not folders:
        raise UpdateRefused("updates by shared path are off: start the sampler with --shared-dir")
    if not path:
        raise InvalidRequest(FIELD, "is required")
    allowed = [folder.resolve() for folder in folders]
    found = _inside(path, allowed)
    if found is None or not found.exists():
        raise InvalidRequest(FIELD, "is nothing below a folder that was given by --shared-dir")
    if found.is_file():
        files = [found]
    else:
        files = sorted(found.glob("model*.safetensors"))
        if not files:
            raise InvalidRequest(FIELD, "is a folder without model*.safetensors")
    real = []
    for file in files:
        target = _inside(str(file), allowed)
        if target is None:
            raise InvalidRequest(FIELD, f"{file.name} links to outside of the shared folders")
        if not target.is_file() or target.suffix != ".safetensors":
            raise InvalidRequest(FIELD, f"{file.name} is no safetensors file")
        real.append(target)
    return real


def _inside(path: str, allowed: Sequence[Path]) -> Path | None:
    """The place that a path really leads to, if that is below one of the folders."""
    if "\0" in path or not Path(path).is_absolute():
        return None
    try:
        real = Path(path).resolve()
    except (OSError, RuntimeError):  # a loop of links
        return None
    return real if any(real.is_relative_to(folder) for folder in allowed) else None
