"""Hostile msgpack, from nothing but opcodes; `hostile.py` puts it among the others."""

import random
import struct
from collections.abc import Iterator

Named = tuple[str, bytes]


def _map(value: bytes, key: bytes = b"\xa1w") -> bytes:
    return b"\x81" + key + value


def _extension(code: int, content: bytes) -> bytes:
    return b"\xc9" + struct.pack(">IB", len(content), code) + content


def _array(shape: bytes, dtype: bytes, values: bytes) -> bytes:
    name = b"\xd9" + bytes([len(dtype)]) + dtype
    return _map(_extension(1, b"\x93" + shape + name + b"\xc6" + struct.pack(">I", len(values)) + values))


def _chunked(shape: bytes, chunks: bytes) -> bytes:
    return _map(b"\x83\xb9__msgpack_chunked_array__\xc3\xa5shape" + shape + b"\xa6chunks" + chunks)


_FLAT = _array(b"\x91\x02", b"float32", bytes(8))[3:]


def _msgpack(_: random.Random) -> Iterator[Named]:
    """Maps, lists and texts that are too large, too deep or not flax's."""
    huge = b"\xdd\x80\x00\x00\x00"
    crafted = {
        "huge list": _map(huge),
        "lists of huge lists": _map(huge * 10_000),
        "huge map": b"\xdf\xff\xff\xff\xff",
        "huge text": _map(b"\xdb\xff\xff\xff\xff"),
        "huge bytes": _map(b"\xc6\xff\xff\xff\xff"),
        "huge extension": _map(b"\xc9\xff\xff\xff\xff\x01"),
        "long text": _map(b"\xdb" + struct.pack(">I", 100_000) + b"a" * 100_000),
        "nested lists": _map(b"\x91" * 100_000 + b"\xc0"),
        "nested maps": b"\x81\xa1a" * 50_000 + b"\xc0",
        "many values": _map(b"\xdd" + struct.pack(">I", 600_000) + b"\xc0" * 600_000),
        "bad text": _map(b"\xa2\xff\xfe"),
        "unused opcode": _map(b"\xc1"),
        "number as a key": b"\x81\x01\xc0",
        "list as a key": b"\x81\x90\xc0",
        "one key twice": b"\x82\xa1a\xc0\xa1a\xc0",
        "no arrays": _map(b"\x01"),
        "bytes after the end": _array(b"\x91\x02", b"float32", bytes(8)) + b"\xc0",
        "unknown extension": _map(_extension(5, b"abc")),
        "complex": _map(_extension(2, b"\x92\xcb" + bytes(8) + b"\xcb" + bytes(8))),
        "time": _map(b"\xd6\xff" + bytes(4)),
        "empty extension": _map(_extension(1, b"")),
        "extension with more": _map(_extension(1, _FLAT[6:] + b"\xc0")),
    }
    yield from crafted.items()


def _msgpack_arrays(_: random.Random) -> Iterator[Named]:
    """Arrays of msgpack with wrong shapes, types and pieces."""
    crafted = {
        "wrong shape": _array(b"\x91\x03", b"float32", bytes(8)),
        "huge shape": _array(b"\x92\xcf" + b"\x7f" * 8 + b"\x04", b"float32", bytes(8)),
        "product that overflows": _array(b"\x94" + (b"\xce\x00\x01\x00\x00") * 4, b"float32", b""),
        "empty and huge": _array(b"\x93\x00\xcf" + b"\x00\x00" + b"\xff" * 6 + b"\x05", b"float32", b""),
        "negative shape": _array(b"\x92\xff\xfe", b"float32", bytes(8)),
        "floats as a shape": _array(b"\x91\xcb" + struct.pack(">d", 2), b"float32", bytes(8)),
        "flag as a shape": _array(b"\x91\xc3", b"float32", bytes(4)),
        "shape of shapes": _array(b"\x91\x91\x02", b"float32", bytes(8)),
        "100 dimensions": _array(b"\xdc\x00\x64" + b"\x01" * 100, b"float32", bytes(4)),
        "objects": _array(b"\x91\x01", b"object", bytes(8)),
        "pointers": _array(b"\x91\x01", b"O", bytes(8)),
        "raw bytes": _array(b"\x91\x01", b"V8", bytes(8)),
        "texts": _array(b"\x91\x01", b"<U2", bytes(8)),
        "long texts": _array(b"\x90", b"<U536870911", b""),
        "fields": _array(b"\x91\x01", b"f4,f4", bytes(8)),
        "big-endian": _array(b"\x91\x02", b">f4", bytes(8)),
        "dates": _array(b"\x91\x01", b"datetime64[ns]", bytes(8)),
        "nothing as a type": _array(b"\x91\x01", b"", bytes(8)),
        "chunks missing": _chunked(b"\x81\xa10\x02", b"\x80"),
        "chunks that are texts": _chunked(b"\x81\xa10\x02", b"\x81\xa10\xa1a"),
        "chunks misnamed": _chunked(b"\x81\xa10\x02", b"\x81\xa11" + _FLAT),
        "chunks of another shape": _chunked(b"\x81\xa10\x03", b"\x81\xa10" + _FLAT),
        "chunks of a huge shape": _chunked(b"\x81\xa10\xcf" + b"\x7f" * 8, b"\x81\xa10" + _FLAT),
        "chunks of no shape": _chunked(b"\xc0", b"\x81\xa10" + _FLAT),
    }
    yield from crafted.items()


GROUPS = (_msgpack, _msgpack_arrays)
