"""Writes files as EDM, torch and flax write them, from nothing but opcodes and bytes.

The small ones are the material of the hostile tests, the large ones stand for public checkpoints.
"""

import io
import json
import math
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import serialization

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
SOURCE = "import os\nos.system('touch executed')\n"
MARK, STOP, REDUCE, NEWOBJ, BUILD, TUPLE, BINPERSID = b"(", b".", b"R", b"\x81", b"b", b"t", b"Q"


class Raw(bytes):
    """Opcodes that stand for a value."""


def named(module: str, name: str) -> Raw:
    """A global of protocol 0 to 3."""
    return Raw(f"c{module}\n{name}\n".encode())


def stack_named(module: str, name: str) -> Raw:
    """A global of protocol 4."""
    return Raw(encode(module) + encode(name) + b"\x93")


def call(function: bytes, *arguments: Any) -> Raw:
    return Raw(function + encode(arguments) + REDUCE)


def encode(value: Any, tensor: Callable[[np.ndarray], bytes] | None = None) -> Raw:
    """Opcodes that leave `value` on the stack; `tensor` writes arrays."""

    def items(values) -> bytes:
        return b"".join(encode(item, tensor) for item in values)

    match value:
        case Raw():
            return value
        case None | True | False:
            return Raw({None: b"N", True: b"\x88", False: b"\x89"}[value])
        case int() if -(2**31) <= value < 2**31:
            return Raw(b"J" + struct.pack("<i", value))
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return Raw(b"\x8a" + bytes([len(data)]) + data)
        case float():
            return Raw(b"G" + struct.pack(">d", value))
        case str():
            return Raw(b"X" + struct.pack("<I", len(value.encode())) + value.encode())
        case bytes() if len(value) < 256:
            return Raw(b"C" + bytes([len(value)]) + value)
        case bytes():
            return Raw(b"B" + struct.pack("<I", len(value)) + value)
        case tuple():
            return Raw(MARK + items(value) + TUPLE)
        case list():
            return Raw(b"]" + MARK + items(value) + b"e")
        case dict():
            return Raw(b"}" + MARK + items(x for pair in value.items() for x in pair) + b"u")
        case np.ndarray():
            return Raw(tensor(value))
    raise TypeError(type(value))


def pickled(value: Any, tensor: Callable[[np.ndarray], bytes] | None = None, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + encode(value, tensor) + STOP


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a contiguous tensor, in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def reference(kind: str, key: str, count: int, *view: Any) -> Raw:
    """A storage by its key."""
    return Raw(encode(("storage", named("torch", kind), key, "cpu", count, *view)) + BINPERSID)


def rebuilt(storage: bytes, offset: Any, shape: Any, steps: Any) -> Raw:
    """A tensor over a storage."""
    hooks = call(named("collections", "OrderedDict"))
    return call(named("torch._utils", "_rebuild_tensor_v2"), Raw(storage), offset, shape, steps, False, hooks)


def legacy_stream(body: bytes, storages: dict[str, np.ndarray], **changes: Any) -> bytes:
    """torch's older format around a pickled object; `changes` replace parts of it."""
    facts = {"protocol_version": 1001, "little_endian": changes.get("little_endian", True), "type_sizes": {}}
    header = (changes.get("magic", MAGIC), changes.get("protocol", 1001), facts)
    out = [pickled(part) for part in header] + [body, pickled(changes.get("keys", list(storages)))]
    for array in storages.values():
        out += [struct.pack("<q", changes.get("count", array.size)), array.tobytes()]
    return b"".join(out)


def storage_stream(array: np.ndarray) -> bytes:
    """A storage alone, as EDM's pickles hold one per tensor."""
    return legacy_stream(
        pickled(reference(STORAGES[array.dtype.name], "94", array.size, None)), {"94": array.ravel()}
    )


def legacy_file(tree: Any) -> bytes:
    """A legacy file of torch with one storage per array."""
    storages: dict[str, np.ndarray] = {}

    def tensor(array: np.ndarray) -> bytes:
        key = str(1000 + len(storages))
        storages[key] = array.ravel()
        kind = STORAGES[array.dtype.name]
        return rebuilt(reference(kind, key, array.size, None), 0, array.shape, strides(array.shape))

    return legacy_stream(pickled(tree, tensor), storages)


def zip_file(tree: Any) -> bytes:
    """A zip file of torch with one storage per array."""
    storages: list[np.ndarray] = []

    def tensor(array: np.ndarray) -> bytes:
        storages.append(array.ravel())
        kind = STORAGES[array.dtype.name]
        return rebuilt(
            reference(kind, str(len(storages) - 1), array.size), 0, array.shape, strides(array.shape)
        )

    body = pickled(tree, tensor)
    entries = {f"archive/data/{i}": array.tobytes() for i, array in enumerate(storages)}
    return zipped({"archive/data.pkl": body, **entries, "archive/version": b"3\n"})


def zipped(entries: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file; a list may have a name twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in dict(entries).items() if isinstance(entries, dict) else entries:
            file.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def edm_tensor(array: np.ndarray) -> Raw:
    storage = call(named("torch.storage", "_load_from_bytes"), storage_stream(array))
    hooks = call(named("collections", "OrderedDict"))
    value = rebuilt(storage, 0, array.shape, strides(array.shape))
    return call(named("torch._utils", "_rebuild_parameter"), value, True, hooks)


def persistent(class_name: str, state: dict[str, Any]) -> Raw:
    """An object of EDM's persistence, with source text that must never run."""
    meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": class_name, "state": state}
    encoded = encode(meta, edm_tensor)
    function = named("torch_utils.persistence", "_reconstruct_persistent_obj")
    return Raw(function + MARK + encoded + TUPLE + REDUCE)


def edm_file(class_name: str, arguments: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """An EDM pickle.

    Args:
        class_name: the preconditioner, "EDMPrecond".
        arguments: its `_init_kwargs`, among them "model_type" for the class of its network.
        arrays: "model.enc.8x8_conv.weight" -> array.
    """

    def ordered(content: dict[str, Any]) -> Raw:
        return Raw(call(named("collections", "OrderedDict")) + encode(content, edm_tensor)[1:])

    def module(prefix: str, name: str) -> Raw:
        own = {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)}
        leaves = {key: a for key, a in own.items() if "." not in key}
        buffers = {key: a for key, a in leaves.items() if key in ("resample_filter", "freqs")}
        children = dict.fromkeys(key.split(".")[0] for key in own if "." in key)
        state = {
            "training": False,
            "_parameters": ordered({key: a for key, a in leaves.items() if key not in buffers}),
            "_buffers": ordered(buffers),
            "_modules": ordered({child: module(f"{prefix}{child}.", child) for child in children}),
        }
        if name in ("enc", "dec"):
            made = named("torch.nn.modules.container", "ModuleDict") + b")" + NEWOBJ
            return Raw(made + encode(state, edm_tensor) + BUILD)
        kinds = {"": class_name, "model": arguments.get("model_type", "SongUNet")}
        extra = {"_init_kwargs": arguments} if name in kinds else {}
        return persistent(kinds.get(name, "UNetBlock"), state | extra)

    return pickled({"ema": module("", ""), "dataset_kwargs": {}}, protocol=4)


def flax_file(tree: Any) -> bytes:
    return serialization.msgpack_serialize(tree)


def safetensors_file(header: Any, values: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + values
