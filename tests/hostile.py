"""Damaged and hostile checkpoints: a fixed stream of inputs, each with what must become of it.

    for name, data, must_fail in inputs(seed=0): ...

`must_fail` is False only where a flipped byte may change a weight, or a spare field, and nothing else:
then a reader may succeed. Every payload that could run leaves a file named `SENTINEL` where it runs.
"""

import datetime
import fractions
import functools
import gzip
import io
import json
import pathlib
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Iterator

import numpy as np

from tests import foreign_files as files
from tests.foreign_files import BINPERSID, BUILD, NEWOBJ, REDUCE, Raw, call, encode, named, pickled

SENTINEL = "executed"
COMMAND = f"touch {SENTINEL}"
FIXTURES = pathlib.Path(__file__).parent / "fixtures"
Input = tuple[str, bytes, bool]

FORBIDDEN = [
    ("os", "system", COMMAND),
    ("posix", "system", COMMAND),
    ("builtins", "eval", f"open('{SENTINEL}', 'w')"),
    ("builtins", "exec", f"open('{SENTINEL}', 'w')"),
    ("builtins", "open", SENTINEL, "w"),
    ("__builtin__", "eval", f"open('{SENTINEL}', 'w')"),
    ("subprocess", "call", ["touch", SENTINEL]),
    ("subprocess", "Popen", ["touch", SENTINEL]),
    ("pathlib", "Path", SENTINEL),
    ("builtins", "getattr", "a", "upper"),
    ("builtins", "__import__", "antigravity"),
    ("importlib", "import_module", "this"),
    ("runpy", "run_path", "x.py"),
    ("operator", "attrgetter", "system"),
    ("functools", "partial", 1),
    ("copyreg", "_reconstructor", 1, 2, None),
    ("_codecs", "encode", "x", "latin1"),
    ("numpy", "load", "x.npy"),
    ("numpy", "frombuffer", b"12345678"),
    ("numpy.testing._private.utils", "runstring", "1", {}),
    ("torch", "load", "x"),
    ("torch.hub", "load", "x", "y"),
    ("torch_utils.persistence", "persistent_class", 1),
    ("torch.nn.modules.linear", "Linear", 1, 1),
    ("collections", "defaultdict", 1),
    ("torch._utils", "_rebuild_tensor_v2.__globals__", 1),
    ("torch", "_utils._rebuild_tensor_v2", 1),
]


class Gadget:
    """Under Python's own unpickler this runs a command."""

    def __reduce__(self):
        import os

        return os.system, (COMMAND,)


def gadget(protocol: int = 2) -> bytes:
    return pickle.dumps({"ema": Gadget()}, protocol)


def weights() -> dict[str, np.ndarray]:
    return {
        "model.enc.8x8_conv.weight": np.arange(24, dtype=np.float32).reshape(4, 6),
        "model.map_layer0.bias": np.arange(5, dtype=np.float16),
    }


def small_files() -> dict[str, bytes]:
    """One good file of every kind."""
    tree = {
        "step": 7,
        "model": {"w": np.eye(4, dtype=np.float32), "n": np.arange(3)},
        "x": [1, 2.5, "t", None],
    }
    header = {"w": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}, "__metadata__": {"a": "b"}}
    return {
        "edm": files.edm_file("EDMPrecond", {"model_type": "SongUNet", "label_dim": 0}, weights()),
        "zip": (FIXTURES / "torch_zip_mixed.pth").read_bytes(),
        "legacy": (FIXTURES / "torch_legacy_mixed.pth").read_bytes(),
        "flax": files.flax_file({"ema_params": tree["model"], "step": np.int64(3), "opt_state": {"0": {}}}),
        "safetensors": files.safetensors_file(header, bytes(64)),
    }


def inputs(seed: int) -> Iterator[Input]:
    """All inputs, the same for the same seed."""
    rng = random.Random(seed)
    yield from _damaged(rng)
    for group in (
        _pickles,
        _foreign_pickles,
        _machines,
        _tensors,
        _legacy,
        _zips,
        _msgpack,
        _safetensors,
        _others,
    ):
        for name, data in group(rng):
            yield f"{group.__name__[1:]}: {name}", data, True


def _damaged(rng: random.Random) -> Iterator[Input]:
    """Truncations and flipped bytes. A zip's checksums guard what its entries hold."""
    large = ("edm_ddpmpp_tiny.pkl", "vdm_torch_tiny.pt", "vdm_flax_format.flax")
    good = small_files() | {name: (FIXTURES / name).read_bytes() for name in large}
    for kind, data in good.items():
        few = kind in large
        for i in range(8 if few else 40):
            end = rng.randrange(len(data))
            yield f"{kind} cut {i} at {end}", data[:end], True
        guarded = _guarded(data) if data[:2] == b"PK" else []
        for i in range(8 if few else 60):
            place = rng.randrange(len(data))
            changed = bytearray(data)
            changed[place] ^= 1 << rng.randrange(8)
            must_fail = any(first <= place < last for first, last in guarded)
            yield f"{kind} flipped {i} at {place}", bytes(changed), must_fail


def _guarded(data: bytes) -> list[tuple[int, int]]:
    """Bytes of a zip file that a checksum covers."""
    places = []
    for entry in zipfile.ZipFile(io.BytesIO(data)).infolist():
        lengths = struct.unpack_from("<2H", data, entry.header_offset + 26)
        first = entry.header_offset + 30 + sum(lengths)
        places.append((first, first + entry.compress_size))
    return places


def _in_all_containers(name: str, body: bytes) -> Iterator[tuple[str, bytes]]:
    """A pickle alone, as a zip's data.pkl, as a legacy stream's object and inside an EDM tensor."""
    yield name, body
    yield f"{name} in a zip", files.zipped({"archive/data.pkl": body})
    yield f"{name} in a legacy file", files.legacy_stream(body, {})
    inner = call(named("torch.storage", "_load_from_bytes"), files.legacy_stream(body, {}))
    yield f"{name} in a tensor", pickled({"ema": inner})


def _pickles(_: random.Random) -> Iterator[tuple[str, bytes]]:
    """Names that no checkpoint needs, asked for in every way that pickle has."""
    for module, name, *arguments in FORBIDDEN:
        asked = pickled({"ema": call(named(module, name), *arguments)})
        yield from _in_all_containers(f"{module}.{name}", asked)
        later = pickled({"ema": call(files.stack_named(module, name), *arguments)}, protocol=4)
        yield f"{module}.{name} from the stack", later
    yield from _in_all_containers("gadget", gadget())
    for protocol in range(6):
        yield f"gadget of protocol {protocol}", gadget(protocol)
    start = b"\x80\x04"
    memoized = (
        encode("system") + b"\x940" + encode("posix") + b"\x94h\x00\x93" + encode((COMMAND,)) + REDUCE + b"."
    )
    yield "memoized strings", start + memoized
    yield "instance", b"\x80\x02(" + encode(COMMAND) + b"ios\nsystem\n."
    yield "instance of protocol 0", b"(S'" + COMMAND.encode() + b"'\nios\nsystem\n."
    yield "object", b"\x80\x02(" + named("os", "system") + encode(COMMAND) + b"o."
    yield "allowed object", b"\x80\x02(" + named("collections", "OrderedDict") + b"o."
    yield "allowed instance", b"\x80\x02(icollections\nOrderedDict\n."
    yield "extension registry", b"\x80\x02\x82\x01."
    yield "name of numbers", b"\x80\x04K\x01K\x02\x93."
    yield "name over two lines", b"\x80\x04" + encode("os\nsystem") + encode("x\ny") + b"\x93."
    yield "reference outside", b"\x80\x02" + encode(("storage", "x")) + BINPERSID + b"."
    yield "reference of protocol 0", b"\x80\x02Pabc\n."
    yield "chain of calls", b"\x80\x02" + named("collections", "OrderedDict") + b")R" * 50 + b"."
    yield "call of a result", b"\x80\x02" + named("collections", "OrderedDict") + b")R)R."
    yield "call of a text", b"\x80\x02" + encode("os.system") + b")R."
    yield (
        "new object of a function",
        b"\x80\x02" + named("torch._utils", "_rebuild_parameter") + b")" + NEWOBJ + b".",
    )
    yield (
        "attributes of a function",
        b"\x80\x02" + named("torch.storage", "_load_from_bytes") + b"}" + BUILD + b".",
    )
    yield "attributes of a list", b"\x80\x02]}" + BUILD + b"."
    yield "bare name", pickled({"ema": named("torch", "FloatStorage")})


def _foreign_pickles(_: random.Random) -> Iterator[tuple[str, bytes]]:
    """What other programs write."""
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit(np.eye(3), np.arange(3))
    values = {
        "scikit-learn model": model,
        "array": np.arange(6.0),
        "dictionary of arrays": {"ema": np.arange(6.0)},
        "array of objects": np.array([None, {}], dtype=object),
        "array of texts": np.array(["a", "b"]),
        "record array": np.zeros(2, dtype=[("a", "f4")]),
        "dictionary": {"ema": {"w": [1.0, 2.0]}},
        "list": [1, 2, 3],
        "number": 1.5,
        "date": datetime.datetime(2020, 1, 1),
        "path": pathlib.PurePosixPath("/etc/passwd"),
        "partial": functools.partial(print, 1),
        "fraction": fractions.Fraction(1, 3),
        "complex": 1j,
        "range": range(10**12),
        "set of tuples": {(1, 2)},
        "huge integer": 1 << 10_000,
        "bytearray": bytearray(300),
        "function": print,
        "class": dict,
    }
    for name, value in values.items():
        for protocol in (0, 2, 4, 5):
            yield f"{name}, protocol {protocol}", pickle.dumps(value, protocol)


def _machines(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Pickles that would exhaust time or memory, or break the machine."""
    start = b"\x80\x04"
    laughs = b"".join(b"]" + b"h" + bytes([i]) + b"ah" + bytes([i]) + b"a\x94" for i in range(100))
    pairs = b"]" + b"(" + encode(("a", 1)) * 5000 + b"e\x85\x940"
    many = b"(" + b"\x8f" * 60_000 + b"l."
    sizes = {
        "bytes8": b"\x8e" + struct.pack("<Q", 2**62),
        "text8": b"\x8d" + struct.pack("<Q", 2**63),
        "bytes": b"B" + struct.pack("<I", 2**32 - 1),
        "text": b"X" + struct.pack("<I", 2**32 - 1),
        "old text": b"T" + struct.pack("<i", -1),
        "integer": b"\x8b" + struct.pack("<i", 2**31 - 1),
        "negative integer": b"\x8b" + struct.pack("<i", -1),
        "array": b"\x96" + struct.pack("<Q", 2**62),
        "frame": b"\x95" + struct.pack("<Q", 2**63),
        "memo": b"Nr\xff\xff\xff\xff0",
        "memo in decimal": b"Np" + b"9" * 400 + b"\n0",
        "missing memo": b"j\xff\xff\xff\xff",
    }
    for name, opcodes in sizes.items():
        yield from _in_all_containers(f"huge {name}", start + opcodes + b".")
    crafted = {
        "long integer": b"\x8a\xff" + bytes(255) + b".",
        "digits": b"I" + b"9" * 400_000 + b"\n.",
        "no digits": b"Iabc\n.",
        "digits with signs": b"I1-1\n.",
        "open marks": b"(" * 100_000,
        "open lists": b"](" * 100_000,
        "nested tuples": b")" + b"\x85" * 50_000 + b".",
        "nested lists": b"]" + b"\x94]h\x00a\x94" * 3 + b"]h\x01a\x94" * 1000 + b".",
        "nested lists in order": b"]" * 5000 + b"a" * 4999 + b".",
        "tuple as key": b"}" + b")" + b"\x86".join([b"2"] * 1) + b"N" + b"s.",
        "nested tuple as key": b"})" + b"2\x86" * 60 + b"Ns.",
        "float as key": b"}" + encode(1.5) + b"Ns.",
        "nested tuple in a set": b"\x8f(" + b")" + b"2\x86" * 60 + b"\x90.",
        "laughs": b"]\x94" + laughs + b".",
        "laughs of tuples": b")" + b"2\x86" * 200 + b".",
        "list in itself": b"]\x94h\x00a.",
        "dictionary in itself": b"}\x94" + encode("ema") + b"h\x00s.",
        "copies of pairs": pairs + (named("collections", "OrderedDict") + b"h\x00R0") * 3000 + b"N.",
        "many sets": many,
        "many opcodes": b"N0" * 300_000 + b"N.",
        "empty stack": b"R.",
        "stop at once": b".",
        "two objects": b"NN.",
        "open at the end": b"(N.",
        "append to nothing": b"a.",
        "append to a number": b"K\x01Na.",
        "odd items": b"}(Nu.",
        "items of a list": b"](NNu.",
        "set items of a list": b"](N\x90.",
        "protocol 77": b"\x80\x4dN.",
        "unknown opcode": b"\xff.",
        "buffers": b"\x97.",
        "text of bad bytes": b"X\x02\x00\x00\x00\xff\xfe.",
        "long text": b"X" + struct.pack("<I", 200_000) + b"a" * 200_000 + b".",
        "never ends": b"N0" * 1000,
        "bytes after the end": pickled({"ema": files.persistent("X", {})}) + b"N.",
        "escaped text": b"S'\\x41'\n.",
        "open text": b"S'abc\n.",
        "endless line": b"c" + b"a" * 100_000,
    }
    for name, opcodes in crafted.items():
        yield from _in_all_containers(name, start + opcodes)
    for i in range(40):
        yield (
            f"random opcodes {i}",
            start + bytes(rng.choice(b"()]}NhKqtRbus\x93\x85\x86\x94c0.") for _ in range(200)),
        )


def _tensors(_: random.Random) -> Iterator[tuple[str, bytes]]:
    """Tensors that claim what their storage has not."""
    good = files.reference("FloatStorage", "0", 6)
    views = {
        "huge sizes": (0, (2**40, 2**40), (2**40, 1)),
        "more sizes than numbers have bits": (0, (2**47,) * 16, (0,) * 16),
        "too large": (0, (7,), (1,)),
        "far offset": (2**40, (1,), (1,)),
        "offset of a little too much": (1, (6,), (1,)),
        "negative offset": (-1, (1,), (1,)),
        "negative sizes": (0, (-1, -6), (1, 1)),
        "negative strides": (5, (6,), (-1,)),
        "far strides": (0, (2,), (2**40,)),
        "zero strides": (0, (2**30, 2**10), (0, 0)),
        "overlapping strides": (0, (3, 3), (1, 1)),
        "empty but huge": (0, (0, 2**40, 2**40), (0, 0, 0)),
        "different lengths": (0, (2, 3), (1,)),
        "100 dimensions": (0, (1,) * 100, (1,) * 100),
        "sizes as a list": (0, [6], [1]),
        "sizes as numbers": (0, 6, 1),
        "floats": (0.0, (6.0,), (1.0,)),
        "flags": (False, (True,), (True,)),
        "texts": ("0", ("6",), ("1",)),
        "no offset": (None, None, None),
        "nested sizes": (0, ((6,),), ((1,),)),
    }
    for name, view in views.items():
        body = pickled({"w": files.rebuilt(good, *view)})
        entries = {"archive/data.pkl": body, "archive/data/0": bytes(24)}
        yield f"{name} in a zip", files.zipped(entries)
        yield f"{name} in a legacy file", files.legacy_stream(body, {"0": np.zeros(6, np.float32)})
        storage = call(
            named("torch.storage", "_load_from_bytes"), files.storage_stream(np.zeros(6, np.float32))
        )
        network = files.persistent("EDMPrecond", {"_parameters": {"w": files.rebuilt(storage, *view)}})
        yield f"{name} in an EDM pickle", pickled({"ema": network})
    references = {
        "unknown key": files.reference("FloatStorage", "9", 6),
        "key with a path": files.reference("FloatStorage", "../data.pkl", 6),
        "wrong count": files.reference("FloatStorage", "0", 7),
        "huge count": files.reference("FloatStorage", "0", 2**62),
        "negative count": files.reference("FloatStorage", "0", -6),
        "wrong type": files.reference("DoubleStorage", "0", 6),
        "type by its name": Raw(encode(("storage", "FloatStorage", "0", "cpu", 6)) + BINPERSID),
        "type that is a function": Raw(
            encode(("storage", named("collections", "OrderedDict"), "0", "cpu", 6)) + BINPERSID
        ),
        "no tuple": Raw(encode("storage") + BINPERSID),
        "module": Raw(encode(("module", named("torch", "FloatStorage"), "x.py", "import os")) + BINPERSID),
        "unknown type": Raw(encode(("storage", named("torch", "QInt8Storage"), "0", "cpu", 6)) + BINPERSID),
    }
    for name, storage in references.items():
        body = pickled({"w": files.rebuilt(storage, 0, (6,), (1,))})
        yield f"{name} in a zip", files.zipped({"archive/data.pkl": body, "archive/data/0": bytes(24)})
        yield f"{name} in a legacy file", files.legacy_stream(body, {"0": np.zeros(6, np.float32)})
    yield "bare storage", files.storage_stream(np.zeros(6, np.float32))
    shared = b"".join(b"]" + (b"h\x00" + b"a") * 100 for _ in range(1))
    body = b"\x80\x02" + files.rebuilt(good, 0, (6,), (1,)) + b"q\x000" + shared + b"."
    big = body.replace(encode(6), encode(100_000))
    yield "one tensor 100 times", files.zipped({"a/data.pkl": big, "a/data/0": bytes(400_000)})


def _legacy(_: random.Random) -> Iterator[tuple[str, bytes]]:
    zeros = np.zeros(6, np.float32)
    body = pickled({"w": files.rebuilt(files.reference("FloatStorage", "0", 6, None), 0, (6,), (1,))})
    part = files.reference("FloatStorage", "0", 6, ("v", 4, 3))
    changes = {
        "wrong protocol": {"protocol": 1002},
        "protocol as a text": {"protocol": "1001"},
        "big-endian": {"little_endian": False},
        "no endianness": {"little_endian": None},
        "no keys": {"keys": []},
        "keys twice": {"keys": ["0", "0"]},
        "other keys": {"keys": ["1"]},
        "more keys": {"keys": ["0", "1"]},
        "numbers as keys": {"keys": [0]},
        "keys as a dictionary": {"keys": {"0": 1}},
        "other count": {"count": 5},
        "negative count": {"count": -6},
        "huge count": {"count": 2**62},
    }
    for name, change in changes.items():
        yield name, files.legacy_stream(body, {"0": zeros}, **change)
    yield "bytes after the end", files.legacy_stream(body, {"0": zeros}) + b"x"
    yield (
        "part outside",
        files.legacy_stream(pickled({"w": files.rebuilt(part, 0, (3,), (1,))}), {"0": zeros}),
    )
    two = {
        "w": files.rebuilt(files.reference("FloatStorage", "0", 6, None), 0, (6,), (1,)),
        "v": files.rebuilt(files.reference("IntStorage", "0", 6, None), 0, (6,), (1,)),
    }
    yield "one key, two types", files.legacy_stream(pickled(two), {"0": zeros})
    huge = pickled({"w": files.rebuilt(files.reference("FloatStorage", "0", 2**47, None), 0, (6,), (1,))})
    yield "huge storage", files.legacy_stream(huge, {"0": zeros})
    yield "only the header", files.legacy_stream(b"", {})[:60]


def _zips(_: random.Random) -> Iterator[tuple[str, bytes]]:
    """Zip files with tricks. The good one holds one tensor."""
    body = pickled({"w": files.rebuilt(files.reference("FloatStorage", "0", 6), 0, (6,), (1,))})
    good = {"archive/data.pkl": body, "archive/data/0": bytes(24)}
    plain = files.zipped(good)
    yield "bomb", files.zipped(good | {"archive/data/1": bytes(60_000_000)}, zipfile.ZIP_DEFLATED)
    bomb = files.zipped({"archive/data.pkl": pickled({"w": bytes(40_000_000)})}, zipfile.ZIP_DEFLATED)
    yield "bomb in the pickle", bomb
    directory, local = plain.rindex(b"PK\1\2"), plain.rindex(b"PK\3\4")
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


def _patched(data: bytes, place: int, change: bytes) -> bytes:
    return data[:place] + change + data[place + len(change) :]


def _msgpack(_: random.Random) -> Iterator[tuple[str, bytes]]:
    def file(value: bytes, key: bytes = b"\xa1w") -> bytes:
        return b"\x81" + key + value

    def extension(code: int, content: bytes) -> bytes:
        return b"\xc9" + struct.pack(">IB", len(content), code) + content

    def array(shape: bytes, dtype: bytes, values: bytes) -> bytes:
        name = b"\xd9" + bytes([len(dtype)]) + dtype
        return file(extension(1, b"\x93" + shape + name + b"\xc6" + struct.pack(">I", len(values)) + values))

    def chunked(shape: bytes, chunks: bytes) -> bytes:
        return file(b"\x83\xb9__msgpack_chunked_array__\xc3\xa5shape" + shape + b"\xa6chunks" + chunks)

    huge = b"\xdd\x80\x00\x00\x00"
    flat = array(b"\x91\x02", b"float32", bytes(8))[3:]
    crafted = {
        "huge list": file(huge),
        "lists of huge lists": file(huge * 10_000),
        "huge map": b"\xdf\xff\xff\xff\xff",
        "huge text": file(b"\xdb\xff\xff\xff\xff"),
        "huge bytes": file(b"\xc6\xff\xff\xff\xff"),
        "huge extension": file(b"\xc9\xff\xff\xff\xff\x01"),
        "long text": file(b"\xdb" + struct.pack(">I", 100_000) + b"a" * 100_000),
        "nested lists": file(b"\x91" * 100_000 + b"\xc0"),
        "nested maps": b"\x81\xa1a" * 50_000 + b"\xc0",
        "many values": file(b"\xdd" + struct.pack(">I", 600_000) + b"\xc0" * 600_000),
        "bad text": file(b"\xa2\xff\xfe"),
        "unused opcode": file(b"\xc1"),
        "number as a key": b"\x81\x01\xc0",
        "list as a key": b"\x81\x90\xc0",
        "one key twice": b"\x82\xa1a\xc0\xa1a\xc0",
        "no arrays": file(b"\x01"),
        "bytes after the end": array(b"\x91\x02", b"float32", bytes(8)) + b"\xc0",
        "unknown extension": file(extension(5, b"abc")),
        "complex": file(extension(2, b"\x92\xcb" + bytes(8) + b"\xcb" + bytes(8))),
        "time": file(b"\xd6\xff" + bytes(4)),
        "empty extension": file(extension(1, b"")),
        "extension with more": file(extension(1, flat[6:] + b"\xc0")),
        "wrong shape": array(b"\x91\x03", b"float32", bytes(8)),
        "huge shape": array(b"\x92\xcf" + b"\x7f" * 8 + b"\x04", b"float32", bytes(8)),
        "product that overflows": array(b"\x94" + (b"\xce\x00\x01\x00\x00") * 4, b"float32", b""),
        "empty and huge": array(b"\x93\x00\xcf" + b"\x00\x00" + b"\xff" * 6 + b"\x05", b"float32", b""),
        "negative shape": array(b"\x92\xff\xfe", b"float32", bytes(8)),
        "floats as a shape": array(b"\x91\xcb" + struct.pack(">d", 2), b"float32", bytes(8)),
        "flag as a shape": array(b"\x91\xc3", b"float32", bytes(4)),
        "shape of shapes": array(b"\x91\x91\x02", b"float32", bytes(8)),
        "100 dimensions": array(b"\xdc\x00\x64" + b"\x01" * 100, b"float32", bytes(4)),
        "objects": array(b"\x91\x01", b"object", bytes(8)),
        "pointers": array(b"\x91\x01", b"O", bytes(8)),
        "raw bytes": array(b"\x91\x01", b"V8", bytes(8)),
        "texts": array(b"\x91\x01", b"<U2", bytes(8)),
        "long texts": array(b"\x90", b"<U536870911", b""),
        "fields": array(b"\x91\x01", b"f4,f4", bytes(8)),
        "big-endian": array(b"\x91\x02", b">f4", bytes(8)),
        "dates": array(b"\x91\x01", b"datetime64[ns]", bytes(8)),
        "nothing as a type": array(b"\x91\x01", b"", bytes(8)),
        "chunks missing": chunked(b"\x81\xa10\x02", b"\x80"),
        "chunks that are texts": chunked(b"\x81\xa10\x02", b"\x81\xa10\xa1a"),
        "chunks misnamed": chunked(b"\x81\xa10\x02", b"\x81\xa11" + flat),
        "chunks of another shape": chunked(b"\x81\xa10\x03", b"\x81\xa10" + flat),
        "chunks of a huge shape": chunked(b"\x81\xa10\xcf" + b"\x7f" * 8, b"\x81\xa10" + flat),
        "chunks of no shape": chunked(b"\xc0", b"\x81\xa10" + flat),
    }
    yield from crafted.items()


def _safetensors(_: random.Random) -> Iterator[tuple[str, bytes]]:
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


def _others(rng: random.Random) -> Iterator[tuple[str, bytes]]:
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
