"""Damaged and hostile checkpoints: a fixed stream of inputs, each with what must become of it.

    for name, data, must_fail in inputs(seed=0): ...

`must_fail` is False only where a flipped byte may change a weight, or a spare field, and nothing else:
then a reader may succeed. Every payload that could run leaves a file named `SENTINEL` where it runs.
"""

import io
import pathlib
import random
import struct
import zipfile
from collections.abc import Iterator

import numpy as np

from tests import foreign_files as files
from tests import hostile_containers, hostile_msgpack, hostile_pickles, hostile_tensors
from tests.hostile_pickles import FORBIDDEN, SENTINEL, Gadget, gadget

__all__ = ["FORBIDDEN", "SENTINEL", "Gadget", "gadget", "inputs", "small_files"]

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
Input = tuple[str, bytes, bool]


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
        "npz": hostile_containers.npz(),
    }


def inputs(seed: int) -> Iterator[Input]:
    """All inputs, the same for the same seed."""
    rng = random.Random(seed)
    yield from _damaged(rng)
    for module in (hostile_pickles, hostile_tensors, hostile_msgpack, hostile_containers):
        for group in module.GROUPS:
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
