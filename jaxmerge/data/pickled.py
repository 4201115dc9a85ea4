"""Arrays out of pickles, without running what the pickle names.

The python versions of CIFAR-10 and of ImageNet32 are pickled dictionaries of numpy arrays. A pickle may name
any function of any module; here each of the few names that numpy's arrays need stands for a class of this
module, and every other name is refused. No function of another module is called.
"""

import io
import math
import pickle
from typing import Any

import numpy as np

# Element types that the archives use.
TYPES = ("u1", "i4", "i8", "f4", "f8")


class _Type:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: str, *rest: Any):
        if code not in TYPES:
            raise ValueError(f"element type {code!r}")
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", "|", "="):
            raise ValueError(f"byte order {state[1]!r}")


class _Array:
    """Stands for ``numpy.ndarray``; holds the parts of which `value` makes an array."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        if isinstance(data, str):  # a pickle by Python 2
            data = data.encode("latin1")
        self.value = _array(data, kind, shape, "F" if fortran else "C")


def _array(data: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> np.ndarray:
    flat = np.frombuffer(data, np.dtype("<" + kind.code))
    if flat.size != math.prod(shape):
        raise ValueError(f"{flat.size} elements for the shape {shape}")
    return flat.reshape(shape, order=order)


def _from_buffer(data: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.value = _array(bytes(data), kind, shape, order)
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


_NAMES = {
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}
for _core in ("numpy.core", "numpy._core"):
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = lambda *ignored: _Array()
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise ValueError(f"it names {module}.{name}, which is no part of an array")
        return _NAMES[module, name]


def read(data: bytes, what: str) -> dict[str, Any]:
    """A pickled dictionary of arrays, lists, numbers and strings.

    Args:
        data: the pickle.
        what: the file's name, for the error.

    Returns:
        The dictionary, its keys as strings.

    Raises:
        ValueError: the pickle is damaged, names anything but arrays, or is no dictionary.
    """
    try:
        content = _Reader(io.BytesIO(data), encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
    except Exception as error:
        raise ValueError(
            f"{what} must be a pickled dictionary of arrays, but {error or type(error).__name__}; "
            "fetch the archive again from its publisher."
        ) from error
    return {
        key.decode() if isinstance(key, bytes) else str(key): value.value
        if isinstance(value, _Array)
        else value
        for key, value in content.items()
    }
