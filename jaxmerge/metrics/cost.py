"""What an expert costs: time per image, network calls, memory, parameters, floating-point operations.

Times are wall time of a whole call, divided by the images of its batch, after warm-up, with the result
waited for. Memory is three different things, and each is named: the process's largest resident set since it began
(host), the device allocator's largest use since it began (accelerators only), and what XLA plans for one
program. XLA counts the body of a loop once and both sides of a condition, so operations are asked of one network
call and never of a whole solve.
"""

import platform
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from jaxmerge import sampling
from jaxmerge.experts.base import Expert
from jaxmerge.noise import PixelScale


class Latency(NamedTuple):
    """Seconds per image over repeats of one call.

    Attributes:
        median: of the repeats.
        quartiles: lower and upper quartile.
        extremes: fastest and slowest.
        first_call: seconds of the first call as a whole, compilation included.
        repeats: timed calls.
        batch_size: images per call.
        device: kind of device, and platform.
    """

    median: float
    quartiles: tuple[float, float]
    extremes: tuple[float, float]
    first_call: float
    repeats: int
    batch_size: int
    device: str

    @property
    def definition(self) -> str:
        """What the numbers are."""
        return (
            f"wall seconds per image, median [quartiles] of {self.repeats} calls after warm-up, batch "
            f"{self.batch_size}, on {self.device}, without compilation"
        )


class ProgramCost(NamedTuple):
    """What XLA says of one compiled program; None where the backend does not say.

    Attributes:
        flops: floating-point operations, loop bodies counted once.
        bytes_accessed: memory traffic.
        argument_bytes, output_bytes, temporary_bytes: planned memory.
    """

    flops: float | None
    bytes_accessed: float | None
    argument_bytes: int | None
    output_bytes: int | None
    temporary_bytes: int | None

    @property
    def planned_bytes(self) -> int | None:
        """Arguments, outputs and temporaries together: the memory that the program needs at most."""
        parts = (self.argument_bytes, self.output_bytes, self.temporary_bytes)
        return None if None in parts else sum(parts)


class Memory(NamedTuple):
    """Largest memory since the process began.

    Attributes:
        host_peak: bytes of the process's resident set; None where the system does not say (Windows).
        device_peak: bytes of the device's allocator; None where it keeps no count (CPU).
    """

    host_peak: int | None
    device_peak: int | None


class Parameters(NamedTuple):
    """Number of parameters and their bytes; arrays that several experts share count once."""

    count: int
    bytes: int


class Cost(NamedTuple):
    """All costs of sampling with one expert.

    Attributes:
        latency: of sampling.
        nfe: network calls per image, mean over the batch.
        call: XLA's account of one network call on the batch.
        memory: after sampling; peaks of the whole process, so measure experts in processes of their own.
        parameters: of the expert, a merge's networks together.
        definition: of the numbers.
    """

    latency: Latency
    nfe: float
    call: ProgramCost
    memory: Memory
    parameters: Parameters
    definition: str


def latency(call: Callable[[], Any], *, batch_size: int, repeats: int = 10, warmup: int = 1) -> Latency:
    """Times a call that returns arrays.

    Args:
        call: without arguments, always the same work.
        batch_size: images that it does.
        repeats: timed calls.
        warmup: untimed calls before them, at least 1; the first one compiles.

    Raises:
        ValueError: fewer than one repeat, warm-up call or image.
    """
    if min(batch_size, repeats, warmup) < 1:
        raise ValueError(
            f"batch_size, repeats and warmup must be at least 1, got {batch_size}, {repeats} and {warmup}."
        )
    seconds = []
    for _ in range(warmup + repeats):
        begin = time.perf_counter()
        out = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begin)
    per_image = np.asarray(seconds[warmup:]) / batch_size
    low, median, high = (float(q) for q in np.quantile(per_image, (0.25, 0.5, 0.75)))
    extremes = (float(per_image.min()), float(per_image.max()))
    return Latency(median, (low, high), extremes, seconds[0], repeats, batch_size, device_of(out))


def _devices(out: PyTree) -> list:
    """Devices of a result; the default one for results on the host."""
    found = {
        device for leaf in jax.tree.leaves(out) if isinstance(leaf, jax.Array) for device in leaf.devices()
    }
    return sorted(found or jnp.zeros(()).devices(), key=lambda device: device.id)


def device_of(out: PyTree = None) -> str:
    """The devices that hold a result (the default one for None), in words: "1 x NVIDIA H200 (gpu)"."""
    devices = _devices(out)
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = platform.processor() or platform.machine() or kind
    return f"{len(devices)} x {kind} ({devices[0].platform})"


def program_cost(fn: Callable, *args: Any) -> ProgramCost:
    """Compiles ``fn(*args)`` and reads XLA's account of it; nothing is run.

    Args:
        fn: a function of pytrees of arrays.
        args: arrays, or shapes (``jax.ShapeDtypeStruct``).
    """
    compiled = jax.jit(fn).lower(*args).compile()
    costs = compiled.cost_analysis() or {}
    # A list with one entry per program in some versions of JAX.
    costs = costs[0] if isinstance(costs, (list, tuple)) else costs
    plan = compiled.memory_analysis()
    sizes = (
        getattr(plan, f"{part}_size_in_bytes", None) for part in ("argument", "output", "temp")
    )  # None for a backend without a plan
    return ProgramCost(costs.get("flops"), costs.get("bytes accessed"), *sizes)


def memory(out: PyTree = None) -> Memory:
    """Peaks of the process and of the devices that hold `out` (the default one for None)."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in _devices(out)]
    return Memory(_host_peak(), None if None in peaks else max(peaks))


def _host_peak() -> int | None:
    if sys.platform == "win32":
        return None
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def parameter_count(tree: PyTree) -> Parameters:
    """Floating-point leaves of a pytree; a merge counts its networks, its threshold and its gate."""
    leaves = {
        id(leaf): leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    }
    count = sum(int(np.size(leaf)) for leaf in leaves.values())
    return Parameters(count, sum(int(np.size(x)) * jnp.result_type(x).itemsize for x in leaves.values()))


def sampling_cost(
    expert: Expert,
    batch_size: int,
    *,
    key: Key[Array, ""],
    settings: sampling.Settings = sampling.Settings(),
    scale: PixelScale | None = None,
    shape: tuple[int, int, int] | None = None,
    repeats: int = 10,
    warmup: int = 1,
) -> Cost:
    """Measures sampling on one device.

    Args:
        expert: any expert.
        batch_size: images per call.
        key: of the samples; every repeat draws the same ones.
        settings: sampler and steps.
        scale, shape: where the expert does not know them.
        repeats, warmup: see `latency`.

    Raises:
        ValueError: as `latency` and `sampling.sample`.
    """
    run = jax.jit(
        lambda e, index: sampling.sample(e, index, key=key, settings=settings, scale=scale, shape=shape)
    )
    index = jnp.arange(batch_size)
    timed = latency(lambda: run(expert, index), batch_size=batch_size, repeats=repeats, warmup=warmup)
    images, nfe = run(expert, index)
    z = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    gamma = jax.ShapeDtypeStruct((), jnp.float32)
    call = program_cost(lambda e, z, gamma: e.eps_hat(z, gamma), expert, z, gamma)
    parameters = parameter_count(expert)
    definition = (
        f"sampling by {settings}; {timed.definition}; NFE per image; operations and planned memory of one call of "
        f"all networks on the batch by XLA; peaks since the process began; {images.dtype} images "
        f"{list(images.shape[1:])}"
    )
    return Cost(timed, float(np.mean(nfe)), call, memory(images), parameters, definition)
