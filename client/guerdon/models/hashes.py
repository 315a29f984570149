"""SHA-256, in hexadecimal, of what makes a model or its text the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path


def file_hash(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def weights_hash(folder: str | os.PathLike[str]) -> str:
    """SHA-256 over the safetensors files of a folder, their names and contents.

    Raises:
        OSError: one can't be read.
    """
    whole = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        whole.update(f"{path.name}\0{file_hash(path)}\n".encode())
    return whole.hexdigest()


def template_hash(template: str | None) -> str:
    """SHA-256 of a chat template's text; empty when there is none."""
    return hashlib.sha256(template.encode()).hexdigest() if template else ""


def vocab_hash(vocabulary: Mapping[str, int]) -> str:
    """SHA-256 of a vocabulary, each token's text with its id.

    Models with the same hash mean the same by a token id.
    """
    tokens = sorted(vocabulary.items(), key=lambda entry: (entry[1], entry[0]))
    text = json.dumps(tokens, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
