"""torch.save's two formats: a zip file with one entry per storage, and the older single stream.

Zip (torch >= 1.6): `PREFIX/data.pkl` is a pickle whose references ('storage', type, key, location, count)
name the entries `PREFIX/data/KEY` with raw little-endian values; `PREFIX/byteorder` may say so.

Legacy: five pickles (magic number, protocol 1001, facts about the writer, the object, the storages' keys),
then for every key a 64-bit count and raw little-endian values. A reference has a sixth part, None or
(view key, offset, count) for a storage that shows part of another. As the values lie behind the object,
its pickle is read twice: first for the storages' keys and sizes, then for the object itself.
"""

from typing import Any

import numpy as np

from checkpoints_convert.readers import tensors, trees
from checkpoints_convert.readers.faults import OFFICIAL, Budget, Fault, shown
from checkpoints_convert.readers.pickle_globals import Environment, Global
from checkpoints_convert.readers.pickle_machine import Machine
from checkpoints_convert.readers.tensors import Storage
from checkpoints_convert.readers.zip_entries import entries

MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def read_zip(data: memoryview, budget: Budget) -> Any:
    """The object in a torch zip file.

    Raises:
        Fault: the file is damaged or not torch's.
    """
    files = entries(data)
    names = [name for name in files if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(names) != 1:
        raise Fault(
            f"expected a zip file of torch with one data.pkl, found {len(names)} among {len(files)} entries",
            "give a file that torch.save wrote",
        )
    prefix = names[0].removesuffix("data.pkl")
    order = bytes(files.get(f"{prefix}byteorder", b"little")[:40]).strip()
    if order != b"little":
        raise Fault(
            f"expected little-endian values, the file has {shown(order)}", "save it on a common machine"
        )
    storages: dict[str, Storage] = {}

    def persistent(reference: Any) -> Storage:
        key, dtype, count, view = _reference(reference)
        if view is not None:
            raise Fault("expected whole storages in a zip file of torch")
        if (content := files.get(f"{prefix}data/{key}")) is None:
            raise Fault(f"expected the values of storage {shown(key)}, but they are not in the file")
        return _same(storages.setdefault(key, Storage(dtype, count, content)), dtype, count)

    machine = Machine(files[names[0]], Environment(budget, persistent))
    tree = machine.run()
    if machine.position != len(machine.data):
        raise Fault("expected nothing after the object in data.pkl")
    trees.check(tree, sum(map(len, files.values())))
    return tree


def read_legacy(data: memoryview, budget: Budget) -> Any:
    """The object in a legacy torch file.

    Raises:
        Fault: the file is damaged or not torch's.
    """
    tree = _stream(data, budget)
    trees.check(tree, len(data))
    return tree


def read_storage(data: memoryview, budget: Budget) -> Storage:
    """The storage in a legacy stream of torch, as EDM's pickles hold one per tensor.

    Raises:
        Fault: the stream is damaged or holds something else.
    """
    storage = _stream(data, budget)
    if not isinstance(storage, Storage):
        raise Fault("expected a storage in a stream of torch")
    return storage


def _stream(data: memoryview, budget: Budget) -> Any:
    position = _check_header(data, budget)
    recorded: dict[str, Storage] = {}
    first = Machine(data, Environment(budget, lambda reference: _recorded(reference, recorded)), position)
    first.run()
    keys = Machine(data, Environment(budget), first.position)
    order = keys.run()
    if type(order) is not list or any(type(key) is not str for key in order):
        raise Fault("expected the list of the storages' keys")
    if len(order) != len(recorded) or set(order) != set(recorded):
        raise Fault(f"expected {len(recorded)} storages, but the file lists {len(order)} or other ones")
    values: dict[str, Storage] = {}
    place = keys.position
    for key in order:
        dtype, count = recorded[key].dtype, recorded[key].count
        start, place = place + 8, place + 8 + count * dtype.itemsize
        if place > len(data):
            raise Fault(f"the file ends inside storage {shown(key)} of {count} {dtype} values")
        if (there := int.from_bytes(data[start - 8 : start], "little")) != count:
            raise Fault(f"expected {count} values in storage {shown(key)}, the file counts {there}")
        values[key] = Storage(dtype, count, data[start:place])
    if place != len(data):
        raise Fault(f"expected the end of the file after {place} bytes, but it has {len(data)}")
    second = Machine(data, Environment(budget, lambda reference: _located(reference, values)), position)
    return second.run()


def _check_header(data: memoryview, budget: Budget) -> int:
    """Position of the object's pickle."""
    position, header = 0, []
    for _ in range(3):
        machine = Machine(data, Environment(budget), position)
        header.append(machine.run())
        position = machine.position
    magic, protocol, facts = header
    if magic != MAGIC or protocol != _PROTOCOL or type(facts) is not dict:
        raise Fault(f"expected a stream of torch with protocol {_PROTOCOL}, got {shown(protocol)}")
    if facts.get("little_endian") is not True:
        raise Fault("expected little-endian values, the file has others", "save it on a common machine")
    return position


def _recorded(reference: Any, recorded: dict[str, Storage]) -> Storage:
    key, dtype, count, view = _reference(reference)
    storage = _same(recorded.setdefault(key, Storage(dtype, count, None)), dtype, count)
    return storage if view is None else Storage(dtype, view[1], None)


def _located(reference: Any, values: dict[str, Storage]) -> Storage:
    key, dtype, _, view = _reference(reference)
    storage = values[key]
    if view is None:
        return storage
    offset, count = view
    if offset + count > storage.count:
        raise Fault(f"expected a part of the {storage.words}, got {count} values from {offset}")
    return Storage(dtype, count, storage.data[offset * dtype.itemsize : (offset + count) * dtype.itemsize])


def _same(storage: Storage, dtype: np.dtype, count: int) -> Storage:
    if storage.dtype != dtype or storage.count != count:
        raise Fault(f"expected one {storage.words} under its key, got {count} {dtype} values")
    return storage


def _reference(reference: Any) -> tuple[str, np.dtype, int, tuple[int, int] | None]:
    """(key, type, count, (offset, count) of a view or None) of a reference to a storage."""
    match reference:
        case ("storage", Global() as kind, str(key), _, int(count), *rest) if 0 <= count < 2**48:
            dtype = tensors.DTYPES.get(kind.name.removeprefix("torch."))
            match rest:
                case [] | [None] if dtype is not None:
                    return key, dtype, count, None
                case [(str(), int(offset), int(part))] if dtype is not None and min(offset, part) >= 0:
                    return key, dtype, count, (offset, part)
    raise Fault("expected a reference to a storage of numbers", OFFICIAL)
