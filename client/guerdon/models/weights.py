"""What a folder's weights are, whatever they are called."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def weights_hash(folder: str | os.PathLike[str]) -> str:
    """SHA-256 over the safetensors files of a folder, their names and contents, in hexadecimal.

    Raises:
        OSError: one can't be read.
    """
    whole = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        whole.update(f"{path.name}\0{digest}\n".encode())
    return whole.hexdigest()
