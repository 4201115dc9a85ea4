"""Bytes of public checkpoints become plain trees: no execution, no copies, one sentence for every fault.

    contents = read("edm-cifar10-32x32-uncond-vp.pkl")
    arrays = module_arrays(contents.tree["ema"])

The container is recognised from the bytes. Files are mapped, not loaded: an array shows the file itself
and costs memory only where somebody looks at it.
"""

import mmap
import os
import stat

from checkpoints_convert.readers.edm_files import module_arrays, read_edm
from checkpoints_convert.readers.faults import OFFICIAL, Budget, Fault, RefusedGlobal, shown
from checkpoints_convert.readers.flax_files import read_flax
from checkpoints_convert.readers.safetensors_files import (
    header_length,
    plausible_header,
    read_safetensors,
)
from checkpoints_convert.readers.torch_files import read_legacy, read_zip
from checkpoints_convert.readers.trees import Contents, Module, flatten

__all__ = ["Contents", "Module", "flatten", "mapped", "module_arrays", "read"]

STEPS = 500_000  # opcodes of pickles, or values of msgpack; public files need about 100,000
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAPS = (*range(0x81, 0x90), 0xDE, 0xDF)
_KNOWN = "a pickle of EDM, a file of torch.save, a msgpack file of flax or a safetensors file"


def read(path: str | os.PathLike) -> Contents:
    """What is in a checkpoint, recognised from its contents.

    Args:
        path: a local file.

    Returns:
        The kind of container, its tree and its metadata; see `Contents`.

    Raises:
        ValueError: the file is missing, unreadable, damaged, hostile or of another kind; one sentence that
            says what was expected, what was found and what to do.
    """
    try:
        return _contents(path, mapped(path))
    except Fault as fault:
        found, advice = fault.found, fault.advice
    except (MemoryError, RecursionError, OverflowError) as error:
        found, advice = f"expected a checkpoint, but reading it ends in {type(error).__name__}", OFFICIAL
    raise ValueError(f"cannot read {shown(os.fspath(path), 300)}: {found}; {advice}.")


def mapped(path: str | os.PathLike) -> memoryview:
    """The whole file, read-only.

    Raises:
        Fault: no such file, an empty one, or none that is a regular file.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Fault("expected a file with a checkpoint, got a device", "give the path of a file")
            if status.st_size == 0:
                raise Fault("expected a checkpoint, got an empty file", "download it again")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except IsADirectoryError:
        raise Fault("expected a file with a checkpoint, got a folder", "give the path of the file") from None
    except FileNotFoundError:
        raise Fault("there is no such file", "check the path or download the file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the path is not valid"
        raise Fault(
            f"expected a readable file, got {reason!r}", "check the path and its permissions"
        ) from None


def _contents(path: str | os.PathLike, data: memoryview) -> Contents:
    budget = Budget(STEPS)
    start = bytes(data[:64])
    if plausible_header(data):  # first: the length in its first byte may look like any other kind
        return Contents("safetensors", *read_safetensors(path, data))
    if start.startswith((b"PK\3\4", b"PK\5\6")):
        return Contents("torch zip", read_zip(data, budget), {})
    if start[:1] == b"\x80" and _LEGACY_MAGIC in (start[2:15], start[11:24]):  # without and with a frame
        return Contents("torch legacy", read_legacy(data, budget), {})
    if start[:1] == b"\x80" and len(start) > 1:
        return Contents("EDM pickle", read_edm(data, budget), {})
    if start[0] in _MAPS:
        return Contents("flax msgpack", read_flax(data, budget), {})
    if header_length(data) is not None:
        return Contents("safetensors", *read_safetensors(path, data))
    raise _foreign(data, budget)


def _foreign(data: memoryview, budget: Budget) -> Fault:
    """Why a file of no known kind is none, with the forbidden name where it is a pickle of protocol 0."""
    start = bytes(data[:64])
    if start.lstrip()[:1] == b"<":
        return Fault(f"expected {_KNOWN}, got a web page", "open the address in a browser, and take its file")
    if start.startswith(b"version https://git-lfs"):
        return Fault(
            f"expected {_KNOWN}, got a pointer of Git LFS", "fetch the file itself with `git lfs pull`"
        )
    try:
        read_edm(data, budget)
    except RefusedGlobal as refused:
        return refused
    except Fault:
        pass
    return Fault(f"expected {_KNOWN}, got a file that begins with {shown(start[:8])}", "give such a file")
