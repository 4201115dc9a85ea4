"""safetensors files: a header of JSON, then raw values.

The package checks the header (its length, overlapping or missing parts, shapes against sizes); the arrays
are then views of the file instead of its copies.
"""

import json
import os

import numpy as np
import safetensors

from checkpoints_convert.readers import tensors
from checkpoints_convert.readers.faults import Fault, shown

_HEADER = 2**22  # bytes; the header of a network of 1000 tensors has 100 kB
_TYPES = {
    "F64": "DoubleStorage",
    "F32": "FloatStorage",
    "F16": "HalfStorage",
    "BF16": "BFloat16Storage",
    "I64": "LongStorage",
    "I32": "IntStorage",
    "I16": "ShortStorage",
    "I8": "CharStorage",
    "U8": "ByteStorage",
    "BOOL": "BoolStorage",
}


def header_length(data: memoryview) -> int | None:
    """Bytes of the header if the file begins like safetensors, else None."""
    length = int.from_bytes(data[:8], "little")
    return length if len(data) > 8 and data[8:9] == b"{" and length < 2**40 else None


def plausible_header(data: memoryview) -> bool:
    """Whether the file begins like safetensors, with a header that it can hold."""
    length = header_length(data)
    return length is not None and length <= _longest(data)


def _longest(data: memoryview) -> int:
    return min(_HEADER, len(data) - 8)


def read_safetensors(
    path: str | os.PathLike, data: memoryview
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name, and the header's texts.

    Args:
        path: the file.
        data: the same file, mapped.

    Raises:
        Fault: the file is damaged.
    """
    length = header_length(data)
    if length > _longest(data):
        raise Fault(
            f"expected a header of safetensors of at most {_HEADER} bytes, got {length} of {len(data)}"
        )
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        raise Fault("expected a header of safetensors that fits its values") from None
    header = json.loads(bytes(data[8 : 8 + length]))
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if (kind := _TYPES.get(entry["dtype"])) is None:
            raise Fault(f"expected common number types, got {shown(entry['dtype'])} in {shown(name)}")
        first, last = (8 + length + offset for offset in entry["data_offsets"])
        arrays[name] = tensors.array(data[first:last], tensors.DTYPES[kind], tuple(entry["shape"]))
    return arrays, metadata
