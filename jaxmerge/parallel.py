"""The only room that knows devices: work on images, sharded over all local devices by ``jax.pmap``.

A function of a batch is mapped over any number of images. Batches are padded to one size by repeating
an image, and the padding is cut off again, so that neither batch size nor device count changes what is
computed for an image.
"""

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def use_all_cores(most: int = 8) -> None:
    """Makes every CPU core a device of its own; call it before JAX is first used.

    XLA splits one small network badly over cores: with one device per core the digits run twice as fast
    on two of them. GPUs and TPUs are not affected, nor is a count that the user has set.

    Args:
        most: devices at most; batches are cut into as many parts.
    """
    if (
        "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        or jax.config.jax_num_cpu_devices > 0
    ):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # JAX refuses once its devices are in use, as in a notebook: then they stay as they are.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", min(cores, most))


def device_count() -> int:
    """Number of local devices that work is sharded over."""
    return jax.local_device_count()


def describe_devices() -> str:
    """Kind and number of the local devices, for reports."""
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


@functools.lru_cache(maxsize=64)
def _program(fn: Callable, static: tuple, replicated: int, mapped: int) -> Callable:
    axes = (None,) * replicated + (0,) * mapped
    return jax.pmap(functools.partial(fn, *static), in_axes=axes)


def map_batches(
    fn: Callable[..., Any],
    static: tuple,
    replicated: tuple,
    arrays: tuple,
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda n: None,
    few: bool = False,
) -> Any:
    """``fn(*static, *replicated, *arrays)`` over the leading axis of `arrays`, batch by batch.

    Args:
        fn: a top-level function; its results must have the images' axis first.
        static: hashable arguments; each value compiles its own program.
        replicated: pytrees that every device gets whole (experts, keys).
        arrays: arrays [N, ...] that are cut into batches.
        batch_size: images per device and call, at most.
        advance: called with the number of images done after each call.
        few: the images are stragglers whose number is chance: their batch is the next power of two, so that
            a handful of programs serves every such number without the work of a full batch.

    Returns:
        fn's results as numpy arrays [N, ...].

    Raises:
        ValueError: a batch size below 1, or no images.
    """
    count = len(arrays[0])
    if batch_size < 1 or count < 1:
        raise ValueError(
            f"batch_size and the number of images must be at least 1, got {batch_size} and {count}."
        )
    devices = device_count()
    # As few calls as the batch size allows, all of the same size: little padding.
    calls = -(-count // (batch_size * devices))
    per_device = -(-count // (calls * devices))
    if few:
        per_device = min(batch_size, 1 << (per_device - 1).bit_length())
    size = per_device * devices
    program = _program(fn, static, len(replicated), len(arrays))
    parts = []
    for start in range(0, count, size):
        real = min(size, count - start)
        rows = np.minimum(np.arange(start, start + size), start + real - 1)
        sharded = [np.asarray(a)[rows].reshape(devices, per_device, *np.shape(a)[1:]) for a in arrays]
        out = program(*replicated, *sharded)
        whole = jax.tree.map(lambda a: np.asarray(a).reshape(size, *a.shape[2:]), out)
        parts.append(jax.tree.map(lambda a, real=real: a[:real], whole))
        advance(real)
    return jax.tree.map(lambda *a: np.concatenate(a), *parts)


# Training: one step on one batch that is cut over the devices.

_AXIS = "devices"


def _everywhere(devices: list[jax.Device]) -> jax.sharding.Sharding:
    mesh = jax.sharding.Mesh(np.array(devices), (_AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def on_all_devices(tree: Any) -> Any:
    """A whole copy of every array on each device, where a `training_program` wants what does not change."""
    return jax.device_put(tree, _everywhere(jax.local_devices()))


def training_program(
    step: Callable[..., Any], replicated: int, *, batch_size: int | None = None
) -> Callable[..., Any]:
    """``step(*replicated, batch)`` on local devices, each with its part of the batch.

    Args:
        step: gets whole copies of its first arguments; it averages what it returns by `mean_over_devices`,
            so that every device returns the same. Its first argument's buffers are given up.
        replicated: the number of arguments before the batch.
        batch_size: takes as many devices as can share that many images evenly; by default all devices.

    Returns:
        A function of the same arguments whose batch is a pytree of host arrays [B, ...].

    Raises:
        ValueError: (when called) a batch that the devices cannot share evenly.
    """
    axes = (None,) * replicated + (0,)
    taking = jax.local_devices()
    if batch_size is not None:
        taking = taking[: max(n for n in range(1, len(taking) + 1) if batch_size % n == 0)]
    program = jax.pmap(step, axis_name=_AXIS, in_axes=axes, out_axes=None, donate_argnums=0, devices=taking)
    cut = functools.partial(shares, devices=len(taking))
    everywhere = _everywhere(taking)

    def place(leaf):
        # An array in another place would be copied at every step, and compile the program once more.
        return leaf if getattr(leaf, "sharding", None) == everywhere else jax.device_put(leaf, everywhere)

    def run(*arguments):
        return program(*jax.tree.map(place, arguments[:-1]), jax.tree.map(cut, arguments[-1]))

    return run


def shares(array: np.ndarray, devices: int) -> np.ndarray:
    """A batch [B, ...] as equal parts [devices, B / devices, ...].

    Raises:
        ValueError: the devices cannot share it evenly.
    """
    array = np.asarray(array)
    if len(array) % devices:
        raise ValueError(
            f"a batch of {len(array)} images cannot be shared evenly by {devices} devices; choose a multiple."
        )
    return array.reshape(devices, -1, *array.shape[1:])


def mean_over_devices(tree: Any) -> Any:
    """Inside a `training_program`: the mean over devices of every array, the same on each."""
    return jax.lax.pmean(tree, _AXIS)


def device_number() -> jax.Array:
    """Inside a `training_program`: this device's number."""
    return jax.lax.axis_index(_AXIS)
