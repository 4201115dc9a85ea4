"""Hostile tensors: what a pickle says of its storages; `hostile.py` puts them among the others."""

import random
from collections.abc import Iterator

import numpy as np

from tests import foreign_files as files
from tests.foreign_files import BINPERSID, Raw, call, encode, named, pickled

Named = tuple[str, bytes]


def _tensors(_: random.Random) -> Iterator[Named]:
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


def _storages(_: random.Random) -> Iterator[Named]:
    """Tensors whose storage is not what they say."""
    good = files.reference("FloatStorage", "0", 6)
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


def _legacy(_: random.Random) -> Iterator[Named]:
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


GROUPS = (_tensors, _storages, _legacy)
