"""The entries of a zip file as views of its bytes, every claim of the file checked.

Stored entries cost no memory. What torch writes (stored, or zip64 beyond 4 GB) and what a person may make
of it by packing it again (deflated) is read; everything odd is refused: wrong sizes or checksums, names
twice, names that climb out of a folder, encryption, entries that overlap, and entries that inflate to
more than a few times the file.
"""

import struct
import zlib
from typing import NamedTuple

from checkpoints_convert.readers.faults import OFFICIAL, Fault, shown

_END = struct.Struct("<4s4H2LH")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRIES = 50_000
_STORED, _DEFLATED = 0, 8


class _Entry(NamedTuple):
    name: str
    flags: int
    method: int
    checksum: int
    packed: int
    size: int
    start: int  # of its local header


def names(data: memoryview) -> list[str]:
    """Names of all files in a zip file, from its directory alone.

    Raises:
        Fault: the directory is damaged.
    """
    return [entry.name for entry in _central(data, *_directory(data))]


def entries(data: memoryview) -> dict[str, memoryview]:
    """name -> bytes of every file in a zip file.

    Raises:
        Fault: the file is damaged, or is no plain zip file of weights.
    """
    directory, count, end = _directory(data)
    found = list(_central(data, directory, count, end))
    if sum(entry.size for entry in found) > 4 * len(data) + 2**24:
        raise Fault("expected a zip file of weights, but its entries unfold to many times its size", OFFICIAL)
    out: dict[str, memoryview] = {}
    previous = 0
    for entry in sorted(found, key=lambda entry: entry.start):
        _check_name(entry.name, out)
        first, last = _place(data, entry, previous, directory)
        out[entry.name] = _content(entry, data[first:last])
        previous = last
    return out


def _directory(data: memoryview) -> tuple[int, int, int]:
    """Start of the central directory, number of entries, and its end."""
    tail = bytes(data[max(0, len(data) - _END.size - 65535) :])
    place = tail.rfind(b"PK\5\6")
    if place < 0 or place + _END.size > len(tail):
        raise Fault("expected the end record of a zip file, but the file ends before it")
    end = len(data) - len(tail) + place
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(data, end)
    if end + _END.size + comment != len(data):
        raise Fault("expected a zip file to end with its end record")
    # torch writes the 64-bit record into small files too.
    locator = max(0, end - _LOCATOR64.size)
    if (
        0xFFFF in (here, count)
        or 0xFFFFFFFF in (size, start)
        or bytes(data[locator : locator + 4]) == b"PK\6\7"
    ):
        end, disk, first_disk, here, count, size, start = _directory64(data, end)
    if disk or first_disk or here != count or count > _ENTRIES:
        raise Fault(f"expected a zip file in one part with at most {_ENTRIES} entries, got {count}")
    if start + size != end:
        raise Fault("expected the directory of a zip file at its end, but its place and size disagree")
    return start, count, end


def _directory64(data: memoryview, end: int) -> tuple[int, int, int, int, int, int, int]:
    place = end - _LOCATOR64.size
    if place >= 0 and data[place : place + 4] == b"PK\6\7":
        start = _LOCATOR64.unpack_from(data, place)[2]
        if start + _END64.size <= place and data[start : start + 4] == b"PK\6\6":
            _, _, _, _, disk, first_disk, here, count, size, first = _END64.unpack_from(data, start)
            return start, disk, first_disk, here, count, size, first
    raise Fault("expected the 64-bit end record of a large zip file")


def _central(data: memoryview, position: int, count: int, end: int):
    for _ in range(count):
        if position + _CENTRAL.size > end or data[position : position + 4] != b"PK\1\2":
            raise Fault(f"expected {count} entries in the directory of a zip file, found fewer")
        head = _CENTRAL.unpack_from(data, position)
        flags, method, checksum, packed, size = head[3], head[4], head[7], head[8], head[9]
        name_length, extra_length, comment_length, start = head[10], head[11], head[12], head[16]
        after = position + _CENTRAL.size
        position = after + name_length + extra_length + comment_length
        if position > end:
            raise Fault("expected whole entries in the directory of a zip file")
        name = bytes(data[after : after + name_length])
        extra = data[after + name_length : after + name_length + extra_length]
        size, packed, start = _sizes64(extra, [size, packed, start])
        yield _Entry(_text(name), flags, method, checksum, packed, size, start)
    if position != end:
        raise Fault(f"expected {count} entries in the directory of a zip file, found more")


def _sizes64(extra: memoryview, numbers: list[int]) -> list[int]:
    """Sizes and place, each taken from the 64-bit field where it does not fit into 32 bits."""
    if 0xFFFFFFFF not in numbers:
        return numbers
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        field = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if kind == 1 and len(field) >= 8 * numbers.count(0xFFFFFFFF):
            large = iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
            return [next(large) if number == 0xFFFFFFFF else number for number in numbers]
    raise Fault("expected the 64-bit sizes of a large zip entry")


def _text(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise Fault(f"expected readable names in a zip file, got {shown(name)}") from None


def _check_name(name: str, taken: dict[str, memoryview]) -> None:
    parts = name.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts) or set(name) & set("\\:\0"):
        raise Fault(f"expected plain names in a zip file, got {shown(name)}", OFFICIAL)
    if name in taken:
        raise Fault(f"expected every name once in a zip file, got {shown(name)} twice", OFFICIAL)


def _place(data: memoryview, entry: _Entry, previous: int, directory: int) -> tuple[int, int]:
    """First byte of an entry's content and the byte after its last one."""
    after = entry.start + _LOCAL.size
    if after > directory or data[entry.start : entry.start + 4] != b"PK\3\4":
        raise Fault(f"expected the zip entry {shown(entry.name)} at byte {entry.start}")
    _, _, flags, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack_from(data, entry.start)
    first = after + name_length + extra_length
    last = first + entry.packed
    if entry.start < previous or last > directory:
        raise Fault(f"expected separate zip entries, but {shown(entry.name)} reaches into another", OFFICIAL)
    if bytes(data[after : after + name_length]) != entry.name.encode() or method != entry.method:
        raise Fault(
            f"expected the zip entry {shown(entry.name)} under the same name in both places", OFFICIAL
        )
    if (flags | entry.flags) & 1:
        raise Fault(f"expected an open zip file, but {shown(entry.name)} is encrypted", "save it without")
    return first, last


def _content(entry: _Entry, packed: memoryview) -> memoryview:
    content = packed
    if entry.method == _DEFLATED:
        content = _inflated(entry, packed)
    elif entry.method != _STORED:
        raise Fault(f"expected stored or deflated zip entries, but {shown(entry.name)} is packed otherwise")
    if len(content) != entry.size:
        raise Fault(f"expected {entry.size} bytes in {shown(entry.name)}, found {len(content)}")
    if zlib.crc32(content) != entry.checksum:
        raise Fault(f"the checksum of {shown(entry.name)} does not fit its bytes")
    return content


def _inflated(entry: _Entry, packed: memoryview) -> memoryview:
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = machine.decompress(packed, entry.size + 1)
    except zlib.error:
        raise Fault(f"the packed bytes of {shown(entry.name)} are damaged") from None
    if not machine.eof or machine.unused_data:
        raise Fault(f"expected {entry.size} bytes in {shown(entry.name)}, but its packed bytes hold others")
    return memoryview(content)
