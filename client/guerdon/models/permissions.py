"""File modes of model folders: what a reader may not open, and what a writer leaves for others."""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What a model is made of: never pickle, never code."""


def unreadable(folder: Path) -> str:
    """What this process may not read of a model's folder, as a sentence.

    Empty when it may read all, or when there is no such folder.

    Tensor and tokenizer libraries answer a missing permission with misleading words ("not a
    safetensors file"), so it is looked for before they are called.
    """
    try:
        if not folder.is_dir():
            return ""
    except PermissionError:  # a folder above it can't be entered
        return _denied(folder)
    if not os.access(folder, os.R_OK | os.X_OK):
        return _denied(folder)
    files = (file for pattern in MODEL_FILES for file in sorted(folder.glob(pattern)))
    denied = (file for file in files if file.exists() and not os.access(file, os.R_OK))
    return next((_denied(file) for file in denied), "")


def apply_umask(*files: Path) -> None:
    """Give files that this process wrote the mode that its umask grants to new ones.

    safetensors writes through a temporary file of mode 0600, whatever the umask: a server that
    runs as another user could not read the weights.
    """
    for file in files:
        # `os.umask` would tell the mask only by changing it, for all threads.
        probe = file.with_name(f".{uuid.uuid4().hex}")
        descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            file.chmod(stat.S_IMODE(os.fstat(descriptor).st_mode))
        finally:
            os.close(descriptor)
            probe.unlink()


def _denied(path: Path) -> str:
    try:
        status = path.stat()
        found = f"its owner is uid {status.st_uid}, its mode {stat.S_IMODE(status.st_mode):04o}"
    except OSError as error:
        found = str(error.strerror)
    return f"{path} can't be read by uid {os.geteuid()}: {found} (chmod -R a+rX permits it to all)"
