"""Sweeping over the threshold: every merge of two experts, sharing what they share.

Upwards in noise every merge follows the low expert until its threshold; downwards every merge follows
the high expert. A sweep walks this common trunk once and branches off at each threshold, with the same
noise and probes for all, so that differences between thresholds are paired.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt8

from jaxmerge import likelihood as likelihood_room
from jaxmerge import noise, parallel, sampling
from jaxmerge import probability_flow as flow
from jaxmerge.dequantize import dequantize
from jaxmerge.experts.base import Expert
from jaxmerge.likelihood import Likelihood
from jaxmerge.merge import Switch


class Sweep(NamedTuple):
    """Likelihoods of both experts and of every merge, on the same images, noise and probes.

    Attributes:
        low: the low-noise expert over its own range.
        high: the high-noise expert over its own range.
        merged: per threshold.
        calls: network calls per image that the whole sweep made, shared parts counted once.
        calls_apart: what separate evaluations would have made.
    """

    low: Likelihood
    high: Likelihood
    merged: list[Likelihood]
    calls: float
    calls_apart: float


def _sweep_likelihood(scale, settings, low, high, gammas, key, images, index):
    """Trunk upwards through the low expert, one branch through the high expert per threshold."""
    keys = noise.image_keys(key, index)
    probes = likelihood_room.probes_for(keys, images.shape[1:], settings)
    draw_keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, 0), 0))(keys)
    start = likelihood_room.start_gamma(low, settings.dequantization, scale)
    d = dequantize(
        settings.dequantization, images, scale=scale, keys=draw_keys, gamma=start, dtype=settings.dtype
    )
    solve = functools.partial(flow.solve, rising=True, control=settings.control, probes=probes)
    bits = 1.0 / (math.prod(images.shape[1:]) * math.log(2))

    def climb(carry, ends):
        """One stretch of the trunk, up to the next threshold."""
        z, total = carry
        step = solve(low, z, ends[0], ends[1])
        total = jax.tree.map(jnp.add, total, (step.divergence, step.error, step.nfe, ~step.ok * 1))
        return (step.z, total), (step.z, total)

    def branch(node):
        gamma, z, trunk = node
        end = solve(high, z, gamma, high.gamma_range[1])
        whole = jax.tree.map(jnp.add, trunk, (end.divergence, end.error, end.nfe, ~end.ok * 1))
        return describe(end.z, high.gamma_range[1], whole), end.nfe

    def describe(z, gamma, whole):
        divergence, error, nfe, failures = whole
        prior = likelihood_room.gaussian_prior(z, gamma)
        log_prob = prior + divergence + d.log_p_x_given_z + d.entropy
        return Likelihood(
            bpd=-bits * log_prob,
            prior=-bits * prior,
            trace=-bits * divergence,
            dequantization=-bits * d.entropy,
            decoder=-bits * d.log_p_x_given_z,
            error=bits * error,
            nfe=nfe,
            ok=(failures == 0) & jnp.isfinite(log_prob),
            refined=jnp.zeros(len(images), bool),
        )

    # Uniform dequantisation starts above the lowest thresholds; those merges are the high expert alone.
    gammas = jnp.maximum(gammas, start)
    nodes = jnp.concatenate(
        [jnp.full(1, start, gammas.dtype), gammas, jnp.full(1, low.gamma_range[1], gammas.dtype)]
    )
    with jax.default_matmul_precision("highest"):
        zero = jnp.zeros(len(images), settings.dtype)
        carry = (d.z, (zero, zero, zero, jnp.zeros(len(images), jnp.int32)))
        # The trunk's last stretch, beyond the highest threshold, is the low expert on its own.
        (z, whole), (states, trunks) = jax.lax.scan(climb, carry, jnp.stack([nodes[:-1], nodes[1:]], axis=1))
        below = jax.tree.map(lambda a: a[:-1], (states, trunks))
        merged, branch_nfe = jax.lax.map(branch, (gammas, *below))
    single = describe(z, low.gamma_range[1], whole)
    calls = whole[2] + jnp.sum(branch_nfe, axis=0)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), merged), single, calls


def sweep_likelihood(
    low: Expert,
    high: Expert,
    etas: Sequence[float],
    images: UInt8[np.ndarray, "N H W C"],
    *,
    key: Key[Array, ""],
    index: Int[np.ndarray, " N"] | None = None,
    settings: likelihood_room.Settings = likelihood_room.Settings(),
    refinement: likelihood_room.Refinement | None = None,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda n: None,
) -> Sweep:
    """Exact likelihood of both experts and of the merge at every threshold, sharing what they share.

    The numbers are those of `likelihood.evaluate` on each model up to the solver's error: same noise,
    same probes, but the trunk's grid has a node at every threshold.

    Args:
        low, high: the experts, single-piece ones.
        etas: thresholds, any order.
        images, key, index, settings, refinement, batch_size, advance: as in `likelihood.evaluate`; one draw
            per image.

    Raises:
        ValueError: a threshold outside the experts' ranges, several draws, or images that do not fit.
    """
    if settings.draws != 1:
        raise ValueError(
            f"a sweep takes one draw per image, got draws={settings.draws}; evaluate merges one by one."
        )
    merges = [Switch(low, high, eta) for eta in etas]
    scale = merges[0].pixel_scale
    images = scale.check(images, merges[0].image_shape)
    index = np.arange(len(images)) if index is None else np.asarray(index)
    gammas = np.array([float(m.gamma) for m in merges], settings.dtype)
    order = np.argsort(gammas)

    def solve(settings, images, index, few):
        return parallel.map_batches(
            _sweep_likelihood,
            (scale,),
            (settings, low, high, gammas[order], key),
            (images, index),
            batch_size=batch_size,
            advance=(lambda n: None) if few else advance,
            few=few,
        )

    def largest_error(result):
        merged, single = (likelihood_room.error_or_failure(r) for r in result[:2])
        return np.maximum(merged.max(axis=1), single)

    def join(first, second):
        both = (likelihood_room.solved_twice(a, b) for a, b in zip(first[:2], second[:2], strict=True))
        return *both, first[2] + second[2]

    merged, single, calls = likelihood_room.refine(
        solve, largest_error, join, images, index, settings, refinement
    )
    apart = likelihood_room.evaluate(
        high, images, key=key, index=index, settings=settings, refinement=refinement, batch_size=batch_size
    )
    rows = [jax.tree.map(lambda a, i=i: a[:, i], merged) for i in np.argsort(order)]
    separate = sum(float(r.nfe.mean()) for r in [single, apart, *rows])
    return Sweep(single, apart, rows, float(calls.mean() + apart.nfe.mean()), separate)


class SampleSweep(NamedTuple):
    """Samples of every merge from the same noise.

    Attributes:
        images: per threshold, grey levels [N, H, W, C].
        nfe: per threshold, network calls per image of its own trajectory.
        calls: network calls per image of the whole sweep.
    """

    images: list[UInt8[np.ndarray, "N H W C"]]
    nfe: list[float]
    calls: float


def _branches(branch, nodes, used):
    """`branch` of every node that is used; the others are padding and give zeros without any work."""
    one = jax.tree.map(lambda a: a[0], nodes)
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(branch, one))
    return jax.lax.map(lambda n: jax.lax.cond(n[1], lambda: branch(n[0]), lambda: empty), (nodes, used))


def _sweep_heun(scale, shape, settings, low, high, gammas, used, key, index):
    """Heun: trunk downwards over the common grid through the high expert, one branch per threshold."""
    gamma_min, gamma_max = low.gamma_range[0], high.gamma_range[1]
    z = sampling.initial_state(key, index, shape, gamma_max)
    grid = jnp.asarray(sampling.noise_grid(settings.steps, gamma_max, gamma_min), z.dtype)
    cuts = noise.sigma_edm(gammas.astype(z.dtype))
    # The trunk needs the nodes above the lowest threshold; the intervals below it are not walked.
    needed = jnp.sum(grid > jnp.min(cuts)) - 1

    def descend(y, i):
        y_next = jax.lax.cond(
            i < needed, lambda: sampling.heun_step(high, y, grid[i], grid[i + 1]), lambda: y
        )
        return y_next, y

    y = z / noise.alpha(jnp.asarray(gamma_max, z.dtype))
    _, trunk = jax.lax.scan(descend, y, jnp.arange(settings.steps - 1))

    def branch(cut):
        node = jnp.sum(grid > cut) - 1
        y = trunk[node]
        y, calls_high = sampling.heun_segment(high, y, grid[node], cut, grid)
        y, calls_low = sampling.heun_segment(low, y, cut, grid[-1], grid)
        z0 = y * noise.alpha(jnp.asarray(gamma_min, y.dtype))
        images = sampling.finish(low, z0, settings, scale, key=key, index=index)
        own = calls_high + calls_low + (settings.final == "denoise")
        return images, own, own + 2.0 * node

    images, own, whole = _branches(branch, cuts, used)
    calls = jnp.sum(own) + 2.0 * needed
    return jnp.moveaxis(images, 0, 1), *(jnp.broadcast_to(a, (len(index), *a.shape)) for a in (whole, calls))


def _sweep_ode(scale, shape, settings, low, high, gammas, used, key, index):
    """ODE: trunk downwards through the high expert with a stop at every threshold, then branches."""
    gamma_min, gamma_max = low.gamma_range[0], high.gamma_range[1]
    z = sampling.initial_state(key, index, shape, gamma_max)
    solve = functools.partial(flow.solve, rising=False, control=settings.control)
    order = jnp.argsort(-gammas)
    falling = gammas[order]
    starts = jnp.concatenate([jnp.asarray([gamma_max], gammas.dtype), falling[:-1]])

    def descend(carry, ends):
        z, nfe = carry
        step = solve(high, z, ends[0], ends[1])
        return (step.z, nfe + step.nfe), (step.z, nfe + step.nfe)

    carry = (z, jnp.zeros(len(index)))
    (_, trunk_nfe), (states, above) = jax.lax.scan(descend, carry, jnp.stack([starts, falling], axis=1))

    def branch(node):
        gamma, z = node
        end = solve(low, z, gamma, gamma_min)
        calls = end.nfe + (settings.final == "denoise")
        return sampling.finish(low, end.z, settings, scale, key=key, index=index), calls

    images, below = _branches(branch, (falling, states), used[order])
    back = jnp.argsort(order)
    whole = jnp.moveaxis((above + below)[back], 0, 1)
    return jnp.moveaxis(images[back], 0, 1), whole, trunk_nfe + jnp.sum(below, axis=0)


def _sweep_ancestral(scale, shape, settings, low, high, gammas, used, key, index):
    """Ancestral: every merge has the same steps and the same noise; only the expert differs below its switch."""
    gamma_min, gamma_max = low.gamma_range[0], high.gamma_range[1]
    steps = settings.steps
    z = sampling.initial_state(key, index, shape, gamma_max)
    walk = functools.partial(
        sampling.ancestral_walk, span=(gamma_min, gamma_max), steps=steps, key=key, index=index
    )
    switches = jax.vmap(lambda g: sampling.node_below(g, (gamma_min, gamma_max), steps))(gammas)
    # Stops on the way down: where a merge switches, its branch starts.
    order = jnp.argsort(-switches)
    falling = switches[order]
    starts = jnp.concatenate([jnp.full(1, steps, falling.dtype), falling[:-1]])

    def descend(z, ends):
        z = walk(high, z, ends[0], ends[1])
        return z, z

    _, states = jax.lax.scan(descend, z, (starts, falling))

    def branch(node):
        t, z = node
        return sampling.finish(low, walk(low, z, t, 0), settings, scale, key=key, index=index), t

    images, below = _branches(branch, (falling, states), used[order])
    back = jnp.argsort(order)
    calls = steps - falling[-1] + jnp.sum(below)
    whole = jnp.full(len(gammas), float(steps)) + (settings.final == "denoise")
    return jnp.moveaxis(images[back], 0, 1), *(
        jnp.broadcast_to(a, (len(index), *a.shape)) for a in (whole, calls)
    )


def sweep_samples(
    low: Expert,
    high: Expert,
    etas: Sequence[float],
    count: int,
    *,
    key: Key[Array, ""],
    settings: sampling.Settings = sampling.Settings(),
    first: int = 0,
    slots: int | None = None,
    batch_size: int = 250,
    advance: Callable[[int], None] = lambda n: None,
) -> SampleSweep:
    """Samples of the merge at every threshold from the same noise, sharing the high expert's trajectory.

    With Heun and ancestral steps the images are those of `sampling.generate` on each merge, step for step.
    With the ODE they agree up to the solver's error.

    Args:
        low, high: the experts, single-piece ones.
        etas: thresholds, any order.
        count, key, settings, first, batch_size, advance: as in `sampling.generate`.
        slots: room for this many thresholds in the compiled program, so that sweeps over fewer reuse it.

    Raises:
        ValueError: a threshold outside the experts' ranges.
    """
    programs = {"heun": _sweep_heun, "ode": _sweep_ode, "ancestral": _sweep_ancestral}
    merges = [Switch(low, high, eta) for eta in etas]
    scale, shape = merges[0].pixel_scale, merges[0].image_shape
    slots = max(slots or 0, len(merges))
    used = np.arange(slots) < len(merges)
    gammas = np.array([float(m.gamma) for m in merges], np.float32)[
        np.minimum(np.arange(slots), len(merges) - 1)
    ]
    images, nfe, calls = parallel.map_batches(
        programs[settings.sampler],
        (scale, shape),
        (settings, low, high, gammas, used, key),
        (np.arange(first, first + count),),
        batch_size=batch_size,
        advance=advance,
    )
    return SampleSweep(
        [images[:, i] for i in range(len(merges))],
        [float(nfe[:, i].mean()) for i in range(len(merges))],
        float(calls.mean()),
    )
