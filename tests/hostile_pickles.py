"""Hostile pickles, alone and inside the containers that hold them; `hostile.py` puts them among the others."""

import datetime
import fractions
import functools
import pathlib
import pickle
import random
import struct
from collections.abc import Iterator

import numpy as np

from tests import foreign_files as files
from tests.foreign_files import BINPERSID, BUILD, NEWOBJ, REDUCE, call, encode, named, pickled

SENTINEL = "executed"
COMMAND = f"touch {SENTINEL}"
Named = tuple[str, bytes]

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


def _in_all_containers(name: str, body: bytes) -> Iterator[Named]:
    """A pickle alone, as a zip's data.pkl, as a legacy stream's object and inside an EDM tensor."""
    yield name, body
    yield f"{name} in a zip", files.zipped({"archive/data.pkl": body})
    yield f"{name} in a legacy file", files.legacy_stream(body, {})
    inner = call(named("torch.storage", "_load_from_bytes"), files.legacy_stream(body, {}))
    yield f"{name} in a tensor", pickled({"ema": inner})


def _pickles(_: random.Random) -> Iterator[Named]:
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


def _foreign_pickles(_: random.Random) -> Iterator[Named]:
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


def _huge(_: random.Random) -> Iterator[Named]:
    """Pickles that declare more than they have."""
    start = b"\x80\x04"
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


def _machines(_: random.Random) -> Iterator[Named]:
    """Pickles that would exhaust time or memory."""
    start = b"\x80\x04"
    laughs = b"".join(b"]" + b"h" + bytes([i]) + b"ah" + bytes([i]) + b"a\x94" for i in range(100))
    pairs = b"]" + b"(" + encode(("a", 1)) * 5000 + b"e\x85\x940"
    many = b"(" + b"\x8f" * 60_000 + b"l."
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
    }
    for name, opcodes in crafted.items():
        yield from _in_all_containers(name, start + opcodes)


def _odd(rng: random.Random) -> Iterator[Named]:
    """Pickles that would break the machine."""
    start = b"\x80\x04"
    crafted = {
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


GROUPS = (_pickles, _foreign_pickles, _huge, _machines, _odd)
