"""A tree of state as two files that can't run code: numbers as JSON, arrays as safetensors.

A tree is made of dicts (keys of strings or integers), lists, tuples, strings, numbers (NaN and
infinities too), booleans, None, bytes, NumPy arrays and torch tensors. What is read back is equal
to the bit, of the same types, and on the CPU. A tensor that occurs twice is stored once.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

_KIND = "$"
"""Key of the JSON objects that stand for what JSON has not."""


class StateError(ValueError):
    """A state can't be read, or holds what can't be written."""


def write_tree(stem: Path, tree: Any) -> None:
    """Write `stem.json`, and `stem.safetensors` if there are arrays in the tree.

    Raises:
        StateError: something in the tree is of another type.
    """
    writer = _Writer()
    text = json.dumps(writer.encode(tree, ""), allow_nan=False)
    if writer.tensors:
        save_file(writer.tensors, stem.with_name(stem.name + ".safetensors"))
    stem.with_name(stem.name + ".json").write_text(text, encoding="utf-8")


def read_tree(stem: Path) -> Any:
    """The tree that `write_tree` wrote.

    Raises:
        StateError: the files are missing or damaged.
    """
    arrays = stem.with_name(stem.name + ".safetensors")
    try:
        found = json.loads(stem.with_name(stem.name + ".json").read_text(encoding="utf-8"))
        return _decode(found, load_file(arrays) if arrays.exists() else {})
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StateError(f"{stem.name} can't be read: {error}") from error


class _Writer:
    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._stored: dict[tuple[Any, ...], str] = {}
        self._kept: list[torch.Tensor] = []  # alive, so that no address is used twice
        self._memory: set[int] = set()

    def encode(self, value: Any, path: str) -> Any:
        if isinstance(value, np.generic):
            raise StateError(f"{path} is a NumPy scalar: use item()")
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int | float | bytes):
            return self._scalar(value, path)
        if isinstance(value, list):
            return self._parts(value, path)
        if isinstance(value, tuple):
            return {_KIND: "tuple", "of": self._parts(value, path)}
        if isinstance(value, dict):
            return self._dict(value, path)
        return self._array(value, path)

    def _scalar(self, value: Any, path: str) -> Any:
        if isinstance(value, bytes):
            array = np.frombuffer(value, dtype=np.uint8)
            return {_KIND: "bytes", "at": self._store(torch.from_numpy(array.copy()), path)}
        if isinstance(value, float) and not math.isfinite(value):
            return {_KIND: "float", "is": repr(value)}
        return value

    def _parts(self, values: Any, path: str) -> list[Any]:
        return [self.encode(value, f"{path}/{i}") for i, value in enumerate(values)]

    def _dict(self, value: dict[Any, Any], path: str) -> Any:
        if not all(type(key) in (str, int) for key in value):
            raise StateError(f"{path} has keys that are neither strings nor integers")
        plain = all(isinstance(key, str) for key in value) and _KIND not in value
        encoded = {key: self.encode(part, f"{path}/{key}") for key, part in value.items()}
        return encoded if plain else {_KIND: "dict", "of": [list(kv) for kv in encoded.items()]}

    def _array(self, value: Any, path: str) -> Any:
        if isinstance(value, np.ndarray):
            if value.dtype == object or value.dtype.kind in "US":
                raise StateError(f"{path} is an array of {value.dtype}")
            tensor = torch.from_numpy(np.array(value, order="C"))
            return {_KIND: "array", "at": self._store(tensor, path)}
        if isinstance(value, torch.Tensor):
            return {_KIND: "tensor", "at": self._store(value, path)}
        raise StateError(f"{path} is a {type(value).__name__}")

    def _store(self, tensor: torch.Tensor, path: str) -> str:
        """The array's name among the tensors; of views of the same memory, only equal ones are
        shared."""
        tensor = tensor.detach()
        place = (
            tensor.device,
            tensor.data_ptr(),
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
        )
        if tensor.numel() and place in self._stored:
            return self._stored[place]
        self._kept.append(tensor)
        copy = tensor.to("cpu").contiguous()
        storage = copy.untyped_storage()
        if storage.nbytes() != copy.nbytes or storage.data_ptr() in self._memory:
            copy = copy.clone()  # safetensors refuses views of the same memory
        self._memory.add(copy.untyped_storage().data_ptr())
        name = path or "/"
        self.tensors[name] = copy
        self._stored[place] = name
        return name


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    match value.get(_KIND):
        case "tuple":
            return tuple(_decode(part, tensors) for part in value["of"])
        case "dict":
            return {key: _decode(part, tensors) for key, part in value["of"]}
        case "float":
            return float(value["is"])
        case "tensor":
            return tensors[value["at"]]
        case "array":
            return tensors[value["at"]].numpy()
        case "bytes":
            return tensors[value["at"]].numpy().tobytes()
        case _:
            return {key: _decode(part, tensors) for key, part in value.items()}
