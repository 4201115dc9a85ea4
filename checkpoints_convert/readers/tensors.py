"""Storages and tensors of torch as read-only NumPy views.

A tensor of torch is a storage (a flat buffer) seen through an offset, sizes and strides, all counted in
elements. A file may declare any numbers there, so the last element's position is compared with the
storage before a view is made.
"""

import math
from typing import Any

import ml_dtypes
import numpy as np

from checkpoints_convert.readers.faults import OFFICIAL, Fault, shown

# Only these types: no objects, no texts, nothing whose values are more than bits.
DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
NAMED = {dtype.name: dtype for dtype in (*DTYPES.values(), np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8"))}
_DIMENSIONS = 16
_BROADCAST = 2**16  # elements that a tensor with zero strides may show


class Storage:
    """A flat buffer of one type.

    Attributes:
        dtype: the type of its elements.
        count: how many there are.
        data: their bytes; None while the place in the file is not known yet.
    """

    def __init__(self, dtype: np.dtype, count: int, data: memoryview | None):
        if data is not None and len(data) != count * dtype.itemsize:
            raise Fault(
                f"expected {count} {dtype} values, {count * dtype.itemsize} bytes, but {len(data)} bytes are there"
            )
        if not 0 <= count < 2**48:
            raise Fault(f"expected a storage of a sensible size, got {shown(count)} values")
        self.dtype = dtype
        self.count = count
        self.data = data

    @property
    def words(self) -> str:
        return f"storage of {self.count} {self.dtype} values"


def array(data: memoryview, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array of `shape` over bytes, a read-only view; the bytes must be exactly as many as it needs."""
    if not all(type(n) is int and 0 <= n < 2**48 for n in shape) or len(shape) > _DIMENSIONS:
        raise Fault(f"expected an array's shape, got {shown(shape)}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise Fault(f"expected {dtype} values of shape {shown(shape)}, but {len(data)} bytes are there")
    return np.frombuffer(data, dtype).reshape(shape) if len(data) else _empty(shape, dtype)


def tensor(storage: Any, offset: Any, sizes: Any, strides: Any) -> np.ndarray | None:
    """A storage seen as a tensor, a read-only view.

    Args:
        storage: a `Storage`.
        offset: of the first element, >= 0.
        sizes: of every dimension, >= 0.
        strides: of every dimension, >= 0, in elements.

    Returns:
        The view, or None while the storage has no values yet.

    Raises:
        Fault: the numbers are no numbers, or reach outside of the storage, or show more elements than it
            has.
    """
    if not isinstance(storage, Storage):
        raise Fault(f"expected a tensor's storage, got {shown(storage)}", OFFICIAL)
    numbers = (offset, *sizes, *strides) if type(sizes) is type(strides) is tuple else (None,)
    if not all(type(n) is int and 0 <= n < 2**48 for n in numbers) or len(sizes) != len(strides):
        raise Fault(
            f"expected a tensor's offset, sizes and strides, got {shown(offset)}, {shown(sizes)} and "
            f"{shown(strides)}"
        )
    if len(sizes) > _DIMENSIONS:
        raise Fault(f"expected a tensor of at most {_DIMENSIONS} dimensions, got {len(sizes)}")
    count = math.prod(sizes)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if offset > storage.count or (count and last >= storage.count):
        raise Fault(
            f"expected a tensor inside its {storage.words}, but sizes {shown(sizes)} with strides "
            f"{shown(strides)} from {offset} reach outside of it"
        )
    repeats = any(stride == 0 and size > 1 for size, stride in zip(sizes, strides, strict=True))
    if count > max(storage.count, _BROADCAST if repeats else 0):
        raise Fault(
            f"expected a tensor of at most as many elements as its {storage.words}, got sizes {shown(sizes)}"
        )
    if storage.data is None:
        return None
    if not count:
        return _empty(sizes, storage.dtype)
    width = storage.dtype.itemsize
    steps = tuple(stride * width for stride in strides)
    return np.ndarray(sizes, storage.dtype, storage.data, offset * width, steps)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if math.prod(max(size, 1) for size in shape) >= 2**31:
        raise Fault(f"expected the shape of an empty array, got {shown(shape)}")
    empty = np.empty(shape, dtype)
    empty.flags.writeable = False
    return empty
