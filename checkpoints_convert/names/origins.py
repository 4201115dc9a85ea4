"""From the arrays of a public checkpoint to the parameters of a network of ours, and back.

A parameter of ours is named by its path, "down/0/norm0/scale". The modules beside this one say for every
path which source arrays it is made of (`Origin`). `fill` sets every parameter exactly once, uses every
source array exactly once, and lists whatever differs; `unfill` is its exact inverse.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Origin(NamedTuple):
    """What one parameter is made of.

    Attributes:
        sources: names of the source arrays.
        make: from the source arrays to the parameter.
        back: the inverse, from the parameter to as many arrays as there are sources.
    """

    sources: tuple[str, ...]
    make: Callable[..., np.ndarray]
    back: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def same(name: str) -> Origin:
    """A source array that is a parameter as it is."""
    return Origin((name,), lambda a: a, lambda a: (a,))


def joined(names: tuple[str, ...]) -> Origin:
    """Source arrays that lie side by side along the parameter's last axis, equally wide."""
    return Origin(
        names, lambda *a: np.concatenate(a, axis=-1), lambda a: tuple(np.split(a, len(names), axis=-1))
    )


def torch(name: str, leaf: str, *, pointwise: bool = False, interleaved: bool = False) -> Origin:
    """A parameter of the torch module `name`: outputs first becomes outputs last.

    Args:
        name: of the module.
        leaf: "kernel", "scale" or "bias".
        pointwise: the kernel is that of a 1x1 convolution in torch and of a linear map here.
        interleaved: q, k and v vary fastest along the outputs there and are three blocks here.
    """
    steps = [_INTERLEAVED] if interleaved else []
    if leaf == "kernel":
        steps += [_POINTWISE] if pointwise else [_TRANSPOSED]

    def make(a):
        for forward, _ in steps:
            a = forward(a)
        return a

    def back(a):
        for _, backward in reversed(steps):
            a = backward(a)
        return (a,)

    return Origin((f"{name}.{'bias' if leaf == 'bias' else 'weight'}",), make, back)


def _thirds(a, order):
    """Outputs [.. x 3] to [3 x ..] (order 1) or back (order -1), along the first axis."""
    shape = (-1, 3) if order == 1 else (3, -1)
    return a.reshape(*shape, *a.shape[1:]).swapaxes(0, 1).reshape(a.shape)


_INTERLEAVED = (lambda a: _thirds(a, 1), lambda a: _thirds(a, -1))
# [out, in] and [out, in, kh, kw] to [in, out] and [kh, kw, in, out].
_TRANSPOSED = (
    lambda a: a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T,
    lambda a: a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T,
)
_POINTWISE = (lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])


def parameter_paths(net: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter of a (possibly abstract) network."""
    return {path: tuple(value.shape) for path, value in _parameters(net).items()}


def _parameters(net: nnx.Module) -> dict:
    flat, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(net)))
    return {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in flat}


def source_shapes(net: nnx.Module, origin: Callable[[str], Origin]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every source array of a network, in the source's layout."""
    shapes = {}
    for path, shape in parameter_paths(net).items():
        names, _, back = origin(path)
        # A single zero, seen in the parameter's shape: only shapes are asked for.
        parts = back(np.broadcast_to(np.float32(0), shape))
        shapes.update({name: part.shape for name, part in zip(names, parts, strict=True)})
    return shapes


def fill(
    net: nnx.Module,
    source: Mapping[str, np.ndarray],
    origin: Callable[[str], Origin],
    *,
    left_out: Callable[[str], bool] = lambda name: False,
) -> nnx.Module:
    """`net` with every parameter taken from `source`, each source array used exactly once.

    Parameters become float32 arrays on the host. Those that lie in the source as they are needed are not
    copied; the others are copied once.

    Args:
        net: a network, concrete or from ``nnx.eval_shape``.
        source: name -> array of floating point numbers in the source's layout.
        origin: path -> `Origin`.
        left_out: names that are left out on purpose.

    Raises:
        ValueError: lists every missing, left-over and misshapen array, and those that hold other than
            finite floating point numbers.
    """
    wanted = source_shapes(net, origin)
    faults = [f"missing {name}" for name in wanted if name not in source]
    faults += [f"left over {name}" for name in source if name not in wanted and not left_out(name)]
    faults += [
        f"{name} needs the shape {list(shape)}, got {list(source[name].shape)}"
        for name, shape in wanted.items()
        if name in source and tuple(source[name].shape) != shape
    ]
    faults += [
        f"{name} needs floating point numbers, got {source[name].dtype}"
        for name in wanted
        if name in source and not jnp.issubdtype(source[name].dtype, jnp.floating)
    ]
    if faults:
        raise ValueError(
            "the checkpoint does not fit the network, its arrays must be used exactly once each: "
            + "; ".join(sorted(faults))
        )
    values = {}
    for path in parameter_paths(net):
        names, make, _ = origin(path)
        with np.errstate(over="ignore"):  # infinite in float32 is refused below
            values[path] = np.ascontiguousarray(make(*(source[n] for n in names)), np.float32)
        if not np.isfinite(values[path]).all():
            faults += names
    if faults:
        raise ValueError(
            "weights must be finite in float32, but these arrays of the checkpoint are not: "
            f"{', '.join(sorted(faults))}; the file is damaged or its training diverged."
        )
    return _with_parameters(net, values)


def _with_parameters(net: nnx.Module, values: dict[str, np.ndarray]) -> nnx.Module:
    graph, state = nnx.split(net)
    flat, treedef = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
    filled = [values[jax.tree_util.keystr(k, simple=True, separator="/")] for k, _ in flat]
    nnx.replace_by_pure_dict(state, jax.tree_util.tree_unflatten(treedef, filled))
    return nnx.merge(graph, state)


def unfill(net: nnx.Module, origin: Callable[[str], Origin]) -> dict[str, np.ndarray]:
    """The parameters of a network under the source's names and in its layout, C-contiguous: `fill` undone."""
    arrays = {}
    for path, value in _parameters(net).items():
        names, _, back = origin(path)
        arrays.update(zip(names, map(np.ascontiguousarray, back(np.asarray(value))), strict=True))
    return arrays
