"""Files that appear whole or not at all, and the plain forms of what goes into them."""

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np


def write_bytes(path: Path, data: bytes) -> None:
    """Writes beside `path`, then renames.

    Raises:
        OSError: with the file's name, which a full disk's own error leaves out.
    """
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        beside.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Creates a folder and its parents.

    Raises:
        OSError: with the folder's name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_json(path: Path) -> Any:
    """A JSON file's content; ValueError where it is damaged."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Writes named arrays, compressed."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file; reading them checks their checksums."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def flat_arrays(tree: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dictionaries as arrays with slashes in their names."""
    flat = {}
    for key, value in tree.items():
        assert isinstance(key, str) and "/" not in key, key
        if isinstance(value, dict):
            flat |= flat_arrays(value, f"{prefix}{key}/")
            continue
        array = np.asarray(value)
        assert array.dtype != object, f"{prefix}{key} is not an array, a number or a string"
        flat[prefix + key] = array
    return flat


def nest(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flat_arrays`; zero-dimensional arrays become Python scalars."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = array.item() if array.ndim == 0 else array
    return tree


def plain(value: Any) -> Any:
    """`value` as JSON knows it: numpy becomes lists and numbers, what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
