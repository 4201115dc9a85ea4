"""Flax's msgpack files as trees of views of the file.

`flax.serialization.msgpack_restore` copies every array, and the optimiser's state of a train state is twice
as large as the weights that are wanted. So this is a reader of our own for what flax writes: a map of maps
whose arrays are extension type 1, [shape, name of the type, bytes in row-major order], and scalars of NumPy
type 3, the same without dimensions. An array is a view of the file, which costs no memory until somebody
looks at its values. Only arrays above 1 GiB, which flax writes in chunks, are joined by copying.
"""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from checkpoints_convert.readers import tensors, trees
from checkpoints_convert.readers.faults import Budget, Fault, shown

_CHUNKED = "__msgpack_chunked_array__"
_TEXT = 2**16
_DEPTH = 64
_ARRAY, _SCALAR = 1, 3
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
# opcode -> kind, bytes of its length
_COUNTED = {
    0xC4: ("bytes", 1),
    0xC5: ("bytes", 2),
    0xC6: ("bytes", 4),
    0xC7: ("extension", 1),
    0xC8: ("extension", 2),
    0xC9: ("extension", 4),
    0xD9: ("text", 1),
    0xDA: ("text", 2),
    0xDB: ("text", 4),
    0xDC: ("list", 2),
    0xDD: ("list", 4),
    0xDE: ("map", 2),
    0xDF: ("map", 4),
}


def read_flax(data: memoryview, budget: Budget) -> dict[str, Any]:
    """The map in a msgpack file of flax.

    Raises:
        Fault: the file is damaged or not flax's.
    """
    walker = _Walker(data, budget)
    tree = walker.value(0)
    if walker.position != len(data):
        raise Fault(f"expected the end of the file after {walker.position} bytes, but it has {len(data)}")
    trees.check(tree, len(data))
    if not isinstance(tree, dict):
        raise Fault("expected a map of flax, got an array alone", "give a checkpoint of flax")
    return tree


class _Walker:
    """Reads msgpack values one after another; every declared length is compared with what is left."""

    def __init__(self, data: memoryview, budget: Budget):
        self.data = data
        self.budget = budget
        self.position = 0

    def take(self, count: int) -> memoryview:
        left = len(self.data) - self.position
        if count > left:
            raise Fault(f"the msgpack data declare a value of {count} bytes, but {left} are left")
        self.position += count
        return self.data[self.position - count : self.position]

    def value(self, depth: int) -> Any:
        """The next value."""
        self.budget.spend()
        if depth > _DEPTH:
            raise Fault(f"expected at most {_DEPTH} nested maps, got more")
        kind = self.take(1)[0]
        if kind <= 0x7F or kind >= 0xE0:
            return kind if kind <= 0x7F else kind - 256
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in _NUMBERS:
            form = struct.Struct(_NUMBERS[kind])
            return form.unpack(self.take(form.size))[0]
        name, count = self.counted(kind)
        read: Callable[[int, int], Any] = getattr(self, name)
        return read(count, depth)

    def counted(self, kind: int) -> tuple[str, int]:
        """Kind and length of a value that declares how long it is."""
        if kind <= 0x8F:
            return "map", kind - 0x80
        if kind <= 0x9F:
            return "list", kind - 0x90
        if kind <= 0xBF:
            return "text", kind - 0xA0
        if 0xD4 <= kind <= 0xD8:
            return "extension", 1 << (kind - 0xD4)
        if kind not in _COUNTED:
            raise Fault(f"expected msgpack data, got byte 0x{kind:02x}")
        name, width = _COUNTED[kind]
        return name, int.from_bytes(self.take(width), "big")

    def bytes(self, count: int, _: int) -> memoryview:
        return self.take(count)

    def text(self, count: int, _: int) -> str:
        data = self.take(count)
        if count > _TEXT:
            raise Fault(f"expected texts of at most {_TEXT} bytes, got one of {count}")
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError:
            raise Fault(f"expected a text, got the bytes {shown(bytes(data[:20]))}") from None

    def list(self, count: int, depth: int) -> list[Any]:
        self.enough(count)
        return [self.value(depth + 1) for _ in range(count)]

    def map(self, count: int, depth: int) -> Any:
        self.enough(2 * count)
        out: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if type(key) is not str or key in out:
                raise Fault(f"expected different names as keys, got {shown(key)}")
            out[key] = self.value(depth + 1)
        return _joined(out) if _CHUNKED in out else out

    def enough(self, count: int) -> None:
        """Every value takes at least a byte."""
        if count > len(self.data) - self.position:
            raise Fault(
                f"the msgpack data declare {count} values, but {len(self.data) - self.position} bytes are left"
            )

    def extension(self, count: int, _: int) -> np.ndarray:
        code = self.take(1)[0]
        if code not in (_ARRAY, _SCALAR):
            raise Fault(f"expected an array of flax, got a value of the extension type {code}")
        inner = _Walker(self.take(count), self.budget)
        # Older writers have the name as bytes, and every length of the parts is possible.
        parts = inner.value(_DEPTH - 2)
        match parts:
            case [list(shape), str(name), memoryview() as content] if inner.position == count:
                pass
            case _:
                raise Fault("expected an array's shape, type and values")
        if (dtype := tensors.NAMED.get(name)) is None:
            raise Fault(f"expected an array of numbers, got one of {shown(name)}")
        return tensors.array(content, dtype, tuple(shape))


def _joined(record: dict[str, Any]) -> np.ndarray:
    """An array that flax wrote in chunks: {"shape": {"0": .}, "chunks": {"0": flat array, ..}}."""
    match record:
        case {"shape": dict(shape), "chunks": dict(chunks)} if chunks:
            sizes = _in_order(shape)
            parts = _in_order(chunks)
            if all(isinstance(part, np.ndarray) and part.ndim == 1 for part in parts) and (
                len({part.dtype for part in parts}) == 1
            ):
                joined = np.concatenate(parts)
                return tensors.array(memoryview(joined.view(np.uint8)).toreadonly(), joined.dtype, sizes)
    raise Fault("expected the shape and the chunks of a large array")


def _in_order(record: dict[str, Any]) -> tuple[Any, ...]:
    names = [str(i) for i in range(len(record))]
    if set(names) != set(record):
        raise Fault("expected numbered parts of a large array")
    return tuple(record[name] for name in names)
