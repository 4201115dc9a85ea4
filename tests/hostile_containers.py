"""Hostile files of the other kinds: zip, safetensors, FID references, and what is no checkpoint at all."""

import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Iterator

import numpy as np

from tests import foreign_files as files
from tests.foreign_files import call, named, pickled
from tests.hostile_pickles import COMMAND, gadget

Named = tuple[str, bytes]


def _body() -> bytes:
    return pickled({"w": files.rebuilt(files.reference("FloatStorage", "0", 6), 0, (6,), (1,))})


def _good() -> dict[str, bytes]:
    """The entries of a good zip file with one tensor."""
    return {"archive/data.pkl": _body(), "archive/data/0": bytes(24)}


def _zips(_: random.Random) -> Iterator[Named]:
    """Zip files with tricks. The good one holds one tensor."""
    body, good = _body(), _good()
    yield "bomb", files.zipped(good | {"archive/data/1": bytes(60_000_000)}, zipfile.ZIP_DEFLATED)
    bomb = files.zipped({"archive/data.pkl": pickled({"w": bytes(40_000_000)})}, zipfile.ZIP_DEFLATED)
    yield "bomb in the pickle", bomb
    deflated = files.zipped(good, zipfile.ZIP_DEFLATED)
    yield "smaller than declared", _patched(deflated, deflated.rindex(b"PK\1\2") + 24, struct.pack("<I", 25))
    yield "larger than declared", _patched(deflated, deflated.rindex(b"PK\1\2") + 24, struct.pack("<I", 3))
    hidden = bytearray(files.zipped(good | {"archive/data/1": bytes(30_000_000)}, zipfile.ZIP_DEFLATED))
    struct.pack_into("<I", hidden, hidden.rindex(b"PK\1\2") + 24, 1000)
    yield "bomb that declares 1000 bytes", bytes(hidden)
    for name in (
        "../data/0",
        "/etc/passwd",
        "archive/../../x",
        "archive//x",
        "archive/./x",
        "..",
        "C:/x",
        "archive\\data\\0",
        "",
    ):
        yield f"named {name!r}", files.zipped([*good.items(), (name, b"x")])
    yield "named with a zero", files.zipped(good | {"archive/data/Z": b"x"}).replace(b"data/Z", b"data\0Z")
    yield "named in bad bytes", files.zipped(good | {"archive/data/Z": b"x"}).replace(b"data/Z", b"data\xffZ")
    twice = files.zipped(good | {"archive/data/Z": bytes(24)}).replace(b"data/Z", b"data/0")
    yield "named twice", twice
    yield "two pickles", files.zipped(good | {"other/data.pkl": body})
    yield "no pickle", files.zipped({"archive/data/0": bytes(24)})
    yield "empty zip", files.zipped({})
    yield "pickle in a deep folder", files.zipped({"a/b/data.pkl": body})
    yield "no values", files.zipped({"archive/data.pkl": body})
    yield "empty pickle", files.zipped(good | {"archive/data.pkl": b""})
    yield "bytes after the pickle", files.zipped(good | {"archive/data.pkl": body + b"N."})
    yield "big-endian", files.zipped(good | {"archive/byteorder": b"big"})
    yield "odd byte order", files.zipped(good | {"archive/byteorder": b"\n\0middle" * 50})


def _zip_records(_: random.Random) -> Iterator[Named]:
    """Zip files whose records contradict each other or the file."""
    good = _good()
    plain = files.zipped(good)
    directory, local = plain.rindex(b"PK\1\2"), plain.rindex(b"PK\3\4")
    yield "lzma", files.zipped(good, zipfile.ZIP_LZMA)
    yield "bzip2", files.zipped(good, zipfile.ZIP_BZIP2)
    yield "encrypted", _patched(plain, directory + 8, b"\1\0")
    yield "encrypted in its header", _patched(plain, local + 6, b"\1\0")
    yield "other method in its header", _patched(plain, local + 8, b"\x08\0")
    yield "other name in its header", _patched(plain, local + 30, b"X")
    yield "wrong checksum", _patched(plain, directory + 16, b"\0\0\0\0")
    yield "overlapping", _patched(plain, directory + 42, struct.pack("<I", 0))
    yield "outside", _patched(plain, directory + 42, struct.pack("<I", 2**31))
    yield "larger than the file", _patched(plain, directory + 20, struct.pack("<2I", 2**31, 2**31))
    yield "64-bit sizes missing", _patched(plain, directory + 20, b"\xff" * 8)
    yield "64-bit end missing", _patched(plain, plain.rindex(b"PK\5\6") + 8, b"\xff" * 4)
    yield "more entries declared", _patched(plain, plain.rindex(b"PK\5\6") + 8, b"\x09\0\x09\0")
    yield "fewer entries declared", _patched(plain, plain.rindex(b"PK\5\6") + 8, b"\x01\0\x01\0")
    yield "second disk", _patched(plain, plain.rindex(b"PK\5\6") + 4, b"\x01\0")
    yield "directory elsewhere", _patched(plain, plain.rindex(b"PK\5\6") + 16, struct.pack("<I", 5))
    yield "comment missing", _patched(plain, plain.rindex(b"PK\5\6") + 20, b"\xff\xff")
    yield "bytes after the end", plain + b"x"
    yield "60000 entries", files.zipped({f"archive/data/{i}": b"" for i in range(2000)})[:-10]


def _foreign_zips(_: random.Random) -> Iterator[Named]:
    """Zip files of other programs."""
    arrays = io.BytesIO()
    np.save(arrays, np.zeros(3))
    yield "npz", files.zipped({"a.npy": arrays.getvalue()})
    yield "document", files.zipped({"[Content_Types].xml": b"<x/>", "word/document.xml": b"<x/>"})
    yield (
        "TorchScript",
        files.zipped(
            {"m/data.pkl": pickled(call(named("__torch__", "Net"))), "m/code/__torch__.py": b"import os"}
        ),
    )


def npz(**changes: bytes) -> bytes:
    """FID reference statistics of two features; `changes` replace an array's npy file."""
    parts = {}
    for name, array in (("mu", np.arange(2.0)), ("sigma", np.eye(2))):
        buffer = io.BytesIO()
        np.save(buffer, array)
        parts[name] = buffer.getvalue()
    return files.zipped({f"{name}.npy": data for name, data in (parts | changes).items()})


def _npy(
    header: str | bytes, values: bytes = bytes(16), version: bytes = b"\1\0", length: int | None = None
) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    count = len(text) if length is None else length
    return b"\x93NUMPY" + version + count.to_bytes(2 if version[0] == 1 else 4, "little") + text + values


def _references(_: random.Random) -> Iterator[Named]:
    """FID reference statistics that are none."""

    def described(descr: str = "'<f8'", order: str = "False", shape: str = "(2,)") -> str:
        return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"

    crafted = {
        "huge shape": _npy(described(shape=f"({2**44},)")),
        "huge shape of two": _npy(described(shape=f"({2**22}, {2**22})")),
        "shape of many digits": _npy(described(shape=f"({'9' * 5000},)")),
        "negative shape": _npy(described(shape="(-2,)")),
        "no dimensions": _npy(described(shape="()"), bytes(8)),
        "no numbers": _npy(described(shape="(0,)"), b""),
        "deep shape": _npy(described(shape="(" * 3000 + ")" * 3000)),
        "an expression as shape": _npy(described(shape="__import__('os')")),
        "open bracket": _npy(described(shape="(2,")),
        "odd bytes": _npy(b"\xff\0" * 40),
        "null bytes": _npy(b"{'descr': '<f8', \0}"),
        "long header": _npy(described() + " " * 60_000),
        "header longer than the file": _npy(described(), length=60_000),
        "4 GB of header": _npy(described(), version=b"\3\0", length=2**32 - 1),
        "version 9": _npy(described(), version=b"\x09\0"),
        "no magic": b"x" + _npy(described())[1:],
        "cut": _npy(described())[:9],
        "empty": b"",
        "objects": _npy(described("'|O'"), gadget()),
        "fields": _npy(described("[('a', '<f8')]")),
        "texts": _npy(described("'<U2'")),
        "whole numbers": _npy(described("'<i8'")),
        "big-endian": _npy(described("'>f8'")),
        "too many values": _npy(described(), bytes(24)),
        "not finite": _npy(described(), np.float64([np.nan, 0]).tobytes()),
    }
    for name, data in crafted.items():
        yield name, npz(mu=data)
    yield "asymmetric", npz(sigma=_npy(described(shape="(2, 2)"), np.arange(4.0).tobytes()))
    yield "negative variance", npz(sigma=_npy(described(shape="(2, 2)"), (-np.eye(2)).tobytes()))
    yield "other size", npz(sigma=_npy(described(shape="(3, 3)"), np.eye(3).tobytes()))
    yield "another name", npz(extra=b"")
    bomb = {"mu.npy": bytes(60_000_000), "sigma.npy": b""}
    yield "bomb", files.zipped(bomb, zipfile.ZIP_DEFLATED)
    plain = npz()
    yield "without sigma", files.zipped({"mu.npy": _npy(described())})
    yield "packed otherwise", _patched(plain, plain.index(b"PK\1\2") + 10, b"\x63\0")
    yield "encrypted", _patched(plain, plain.index(b"PK\1\2") + 8, b"\1\0")
    for count in (40_000, 60_000):
        yield f"{count} entries", _crowded(plain, count)


def _crowded(plain: bytes, count: int) -> bytes:
    """A zip file whose directory names its first file `count` times."""
    first = plain.index(b"PK\1\2")
    entry = plain[first : plain.index(b"PK\1\2", first + 1)]
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, count * len(entry), first, 0)
    return plain[:first] + count * entry + end


def _patched(data: bytes, place: int, change: bytes) -> bytes:
    return data[:place] + change + data[place + len(change) :]


def _safetensors(_: random.Random) -> Iterator[Named]:
    def entry(shape=(4,), offsets=(0, 16), dtype="F32", **more):
        return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}

    file = files.safetensors_file
    yield "huge header", file(b"{}", length=2**39)
    yield "header of 5 MB", file(b"{" + b" " * 5_000_000 + b"}")
    yield "header longer than the file", file(b"{}", length=1000)
    yield "no JSON", file(b"{abc")
    yield "nested JSON", file(b'{"a":' * 100_000)
    yield "nested lists", file(b'{"a":' + b"[" * 100_000)
    yield "number as an entry", file({"a": 1})
    yield "no offsets", file({"a": {"dtype": "F32", "shape": [4]}}, bytes(16))
    yield "outside", file({"a": entry(offsets=(0, 32), shape=(8,))}, bytes(16))
    yield "huge offsets", file({"a": entry(offsets=(0, 2**63), shape=(2**61,))}, bytes(16))
    yield "negative offsets", file({"a": entry(offsets=(-16, 0))}, bytes(16))
    yield "overlapping", file({"a": entry(), "b": entry()}, bytes(16))
    yield "gap", file({"a": entry(offsets=(16, 32))}, bytes(32))
    yield "bytes after the end", file({"a": entry()}, bytes(17))
    yield "wrong shape", file({"a": entry(shape=(5,))}, bytes(16))
    yield "overflowing shape", file({"a": entry(shape=(2**32, 2**32), offsets=(0, 0))})
    yield "negative shape", file({"a": entry(shape=(-4,))}, bytes(16))
    yield "unknown type", file({"a": entry(dtype="X32")}, bytes(16))
    yield "rare type", file({"a": entry(dtype="F8_E5M2", shape=(16,))}, bytes(16))
    yield "numbers as texts", file({"a": entry(), "__metadata__": {"a": 1}}, bytes(16))
    yield "one name twice", file(json.dumps({"a": entry()}).encode()[:-1] + b', "a": 1}', bytes(16))


def _others(rng: random.Random) -> Iterator[Named]:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        info = tarfile.TarInfo("../../x")
        info.size = 3
        file.addfile(info, io.BytesIO(b"abc"))
    yield from {
        "empty": b"",
        "one byte": b"\x80",
        "zeros": bytes(1000),
        "text": b"hello, world\n" * 10,
        "web page": b"<!DOCTYPE html><html><body>Google Drive - Virus scan warning</body></html>",
        "git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "json": b'{"a": [1, 2, 3]}',
        "gzip": gzip.compress(bytes(10_000_000), mtime=0),
        "tar": tar.getvalue(),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + bytes(80),
        "numpy's pickle in npy": b"\x93NUMPY" + gadget(),
        "python": f"import os\nos.system('{COMMAND}')\n".encode(),
    }.items()
    for i in range(60):
        lead = (b"", b"PK\3\4", b"\x80\x02", b"\x80\x04\x95", b"\x81\xa1w", bytes([20, *[0] * 7]) + b"{")[
            i % 6
        ]
        yield f"random bytes {i}", lead + rng.randbytes(rng.randrange(300))


GROUPS = (_zips, _zip_records, _foreign_zips, _safetensors, _references, _others)
