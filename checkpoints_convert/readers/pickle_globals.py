"""The names that checkpoints' pickles may use, each with the plain data that stands for it.

These are all names found in the files of EDM, of the PyTorch VDM and of the Inception weights. Adding one
means adding a function of ours that returns plain data; nothing here imports what a file names.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from checkpoints_convert.readers import tensors
from checkpoints_convert.readers.faults import OFFICIAL, Budget, Fault, RefusedGlobal, shown
from checkpoints_convert.readers.trees import Module


class Environment(NamedTuple):
    """What a pickle may reach outside of itself.

    Attributes:
        budget: the work that is left for the whole file.
        persistent: answers torch's references to storages; None where there are none.
        nested: reads a torch stream inside bytes; None where there is none.
    """

    budget: Budget
    persistent: Callable[[Any], Any] | None = None
    nested: Callable[[memoryview], Any] | None = None


class Global(NamedTuple):
    """An allowed name. On a pickle's stack it can be called, or name a storage's type, and nothing else.

    Attributes:
        name: with its module.
        function: (arguments, environment) -> plain data; None where it cannot be called.
        new: the file makes it as an empty object that gets its attributes later.
    """

    name: str
    function: Callable[[tuple, Environment], Any] | None
    new: bool

    @property
    def words(self) -> str:
        return f"a reference to {self.name}"


class Unfinished:
    """An array of NumPy whose numbers come with a later opcode."""

    words = "an unfinished array"

    def __init__(self):
        self.places: list[int] = []  # where the memo holds it


def known(module: Any, name: Any) -> Global:
    """The allowed name.

    Raises:
        RefusedGlobal: for every other name.
    """
    if type(module) is not str or type(name) is not str:
        raise Fault(f"expected a name in the pickle, got {shown(module)} and {shown(name)}", OFFICIAL)
    if (found := _GLOBALS.get((module, name))) is None:
        raise RefusedGlobal(f"{shown(module)}.{shown(name)}")
    return found


def build(target: Any, state: Any) -> Any:
    """`target` with its attributes; an unfinished array becomes an array.

    Attributes of dictionaries (a state dict's `_metadata`) and of dtypes say nothing about weights.
    """
    if type(target) is Module and type(state) is dict:
        target.state.update(state)
        return target
    if type(target) is Unfinished:
        return _array(state)
    if isinstance(target, np.dtype):
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|", "="):
            raise Fault("expected little-endian numbers without fields")
        return target
    if type(target) is dict:
        return target
    raise Fault(f"expected attributes for a module, got them for {shown(target)}")


def _array(state: Any) -> np.ndarray:
    match state:
        case (int(), tuple(shape), np.dtype() as dtype, int(fortran), bytes() | memoryview() as data):
            view = tensors.array(memoryview(data), dtype, shape[::-1] if fortran else shape)
            return view.T if fortran else view
    raise Fault("expected an array's shape, type and bytes")


def _persistent_object(arguments: tuple, _: Environment) -> Module:
    match arguments:
        case ({"type": "class", "class_name": str(name), "state": dict(state)},):
            return Module(name, state)
    raise Fault("expected the record of a network's class", OFFICIAL)


def _dictionary(arguments: tuple, environment: Environment) -> dict:
    match arguments:
        case ():
            return {}
        case (list(pairs),):
            environment.budget.spend(len(pairs))
            if all(type(pair) in (list, tuple) and len(pair) == 2 and type(pair[0]) is str for pair in pairs):
                return dict(pairs)
    raise Fault("expected pairs of a name and a value for a dictionary")


def _storage(arguments: tuple, environment: Environment) -> Any:
    match arguments:
        case (bytes() | memoryview() as data,) if environment.nested is not None:
            return environment.nested(memoryview(data))
    raise Fault("expected the bytes of a tensor")


def _tensor(arguments: tuple, _: Environment) -> np.ndarray | None:
    if len(arguments) < 4:
        raise Fault(f"expected a tensor's storage, offset, sizes and strides, got {len(arguments)} values")
    return tensors.tensor(*arguments[:4])


def _parameter(arguments: tuple, _: Environment) -> np.ndarray | None:
    match arguments:
        case (np.ndarray() | None as data, *_):
            return data
    raise Fault("expected a parameter's tensor")


def _dtype(arguments: tuple, _: Environment) -> np.dtype:
    match arguments:
        case (str(code), *_) if code in _CODES:
            return _CODES[code]
    raise Fault(f"expected a plain number type, got {shown(arguments[0]) if arguments else 'none'}", OFFICIAL)


def _scalar(arguments: tuple, _: Environment) -> Any:
    match arguments:
        case (np.dtype() as dtype, bytes() | memoryview() as data):
            return tensors.array(memoryview(data), dtype, ()).item()
    raise Fault("expected a number's type and bytes")


def _reconstruct(arguments: tuple, _: Environment) -> Unfinished:
    match arguments:
        case (Global(name="numpy.ndarray"), *_):
            return Unfinished()
    raise Fault("expected an array of NumPy", OFFICIAL)


def _size(arguments: tuple, _: Environment) -> tuple:
    match arguments:
        case (tuple(sizes),):
            return sizes
    raise Fault("expected the sizes of a tensor")


def _device(arguments: tuple, _: Environment) -> str:
    match arguments:
        case (str(kind), *rest):
            return ":".join([kind[:20], *(str(n) for n in rest[:1] if type(n) is int)])
    raise Fault("expected the name of a device")


def _container(name: str) -> Callable[[tuple, Environment], Module]:
    def make(arguments: tuple, _: Environment) -> Module:
        if arguments:
            raise Fault(f"expected an empty {name} to be filled")
        return Module(name, {})

    return make


_CODES = {dtype.str[1:]: dtype for dtype in map(np.dtype, "?bBhHiIlLqQefd")}
_ALLOWED: list[tuple[str, str, Callable[[tuple, Environment], Any] | None]] = [
    ("torch_utils.persistence", "_reconstruct_persistent_obj", _persistent_object),
    ("collections", "OrderedDict", _dictionary),
    ("dnnlib.util", "EasyDict", _dictionary),
    ("torch.storage", "_load_from_bytes", _storage),
    ("torch._utils", "_rebuild_tensor", _tensor),
    ("torch._utils", "_rebuild_tensor_v2", _tensor),
    ("torch._utils", "_rebuild_parameter", _parameter),
    ("torch._utils", "_rebuild_parameter_with_state", _parameter),
    ("torch", "Size", _size),
    ("torch", "device", _device),
    ("numpy", "dtype", _dtype),
    ("numpy", "ndarray", None),
    *((f"numpy.{core}.multiarray", "scalar", _scalar) for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "_reconstruct", _reconstruct) for core in ("core", "_core")),
    *(
        ("torch.nn.modules.container", name, _container(name))
        for name in ("ModuleDict", "ModuleList", "Sequential")
    ),
    *(("torch", name, None) for name in tensors.DTYPES),
]
_FILLED = ("ModuleDict", "ModuleList", "Sequential", "EasyDict")
_GLOBALS = {
    (module, name): Global(f"{module}.{name}", function, name in _FILLED)
    for module, name, function in _ALLOWED
}
