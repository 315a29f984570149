"""A checkpoint's files: which hold the weights, what is in them, and their hash.

Reads the headers of safetensors files only: no tensor is loaded, and no model is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from guerdon.models import MANIFEST_NAME, file_hash
from guerdon.serving.errors import CheckpointRefused

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_FLOATS = ("F64", "F32", "F16", "BF16")
# Buffers such as `position_ids` and masks; weights are never of these types.
_BUFFERS = ("I64", "I32", "BOOL", "U8")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a safetensors file says of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """The number type in the format's own words: F32, BF16, …"""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that `transformers` would load.

    Raises:
        CheckpointRefused: there are none, only pickles, or some are missing.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise CheckpointRefused(
            f"{folder} holds both {SINGLE} and {INDEX}: delete the one that is left over"
        )
    if single.is_file():
        return [single]
    if index.is_file():
        return _shards(folder, index)
    if any(any(folder.glob(pattern)) for pattern in _PICKLES):
        raise CheckpointRefused(
            f"{folder} holds its weights as pickle files, which can run code when they are "
            'opened: where you trust them, save them again once, python -c "from transformers '
            f"import AutoModelForSequenceClassification as M; M.from_pretrained('{folder}')"
            f".save_pretrained('{folder}')\", and see that it warns of no missing weights"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        raise CheckpointRefused(
            f"{folder} holds {others[0]}, but neither {SINGLE} nor {INDEX}: save it again by "
            "save_pretrained"
        )
    raise CheckpointRefused(
        f"{folder} holds no weights: there is no {SINGLE} (pickles are never fetched from the hub: "
        "where a model has nothing else, save it as safetensors first)"
    )


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        mapping: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(mapping.values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointRefused(f"{index} can't be read: {error!r}") from error
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointRefused(
                f"{index} names {name!r}, which is no safetensors file beside it"
            )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise CheckpointRefused(
            f"{folder} lacks {len(missing)} of the {len(names)} shards that {INDEX} names"
            + (f", such as {missing[0]}" if missing else "")
        )
    held = {name: read_headers([folder / name]) for name in names}
    for tensor, name in mapping.items():
        if tensor not in held[name]:
            raise CheckpointRefused(f"{INDEX} says that {tensor} is in {name}, but it is not")
    return [folder / name for name in names]


def read_headers(files: Iterable[Path]) -> dict[str, TensorHeader]:
    """Shape and type of every tensor, by name.

    Raises:
        CheckpointRefused: a file is truncated, corrupt, or holds quantised tensors, or two
            files hold the same tensor.
    """
    found: dict[str, TensorHeader] = {}
    for path in files:
        try:
            with safe_open(str(path), framework="np") as handle:
                for name in handle.keys():  # noqa: SIM118 - not a mapping
                    if name in found:
                        raise CheckpointRefused(
                            f"{path} holds {name}, and so does another shard: delete what is "
                            "left over"
                        )
                    part = handle.get_slice(name)
                    found[name] = TensorHeader(tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise CheckpointRefused(
                f"{path} is truncated or not a safetensors file ({error}): copy it again"
            ) from error
    for name, header in found.items():
        if header.dtype not in _FLOATS and header.dtype not in _BUFFERS:
            raise CheckpointRefused(
                f"{name} is stored as {header.dtype}: quantised weights are not served, because "
                "their scores could not be checked; save it as float32 or bfloat16"
            )
    return found


def all_files(folder: Path, weights: Iterable[Path]) -> list[Path]:
    """Every file that decides what a checkpoint says, the weights among them, by name."""
    files = set(weights)
    for pattern in ("config.json", MANIFEST_NAME, *_TOKENIZER_FILES):
        files.update(path for path in folder.glob(pattern) if path.is_file())
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def content_hash(folder: Path, weights: Iterable[Path]) -> str:
    """SHA-256 over the weights, config, tokenizer, templates and manifest, in hexadecimal.

    Whole files count, so any change gives another revision. Files are hashed in parallel;
    one core of a busy two-core machine did 0.7 GB/s.
    """
    ordered = all_files(folder, weights)
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(file_hash, ordered))
    whole = hashlib.sha256()
    for path, digest in zip(ordered, digests, strict=True):
        whole.update(f"{path.relative_to(folder).as_posix()}\0{digest}\n".encode())
    return whole.hexdigest()


def stamp(files: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of files: differs when they were written meanwhile."""
    found = []
    for path in files:
        status = path.stat()
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return tuple(found)
