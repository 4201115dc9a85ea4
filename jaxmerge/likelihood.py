"""Exact likelihood by the probability-flow ODE, with every term named.

    log p(z_0) = log N(z_T; 0, sigma_T^2 I) + integral of div h dgamma, gamma_min to gamma_max   (Eq. 8)
    log P(x) >= E_q [log p(z_0) + log p(x | z_0) - log q(z_0 | x)]                               (Eq. 16-17)
    bpd = -log P(x) / (D ln 2)

(arXiv 2511.19434; its Eq. 8 prints a minus before the integral, with these limits a misprint.) q is
one of the dequantisations of ``dequantize.py``; K draws give the importance-weighted estimate
log mean_k exp(log p_k - log q_k).

Two traps of importance weighting, both measured in the tests: without the -log K of the mean the
result is too good by log(K)/(D ln 2) bits per dimension; and Hutchinson noise that differs between
the draws enters the log-mean-exp and flatters the model. All draws of an image share its probes here,
and with a stochastic trace the result is an estimate, not a bound.

The noise of image i follows from (key, index[i]) alone: neither batch size nor number of devices
changes it. Networks run at full float32 precision whatever the machine's default, since TF32 and
bfloat16 are too coarse for a divergence.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from jaxmerge import noise, parallel
from jaxmerge import probability_flow as flow
from jaxmerge.dequantize import METHODS, dequantize
from jaxmerge.experts.base import Expert, check_range
from jaxmerge.noise import PixelScale

Terminal = Callable[[Float[Array, "B H W C"], float], Float[Array, " B"]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a likelihood is computed; hashable, so that it is a static argument of jitted functions.

    Args:
        control: step control of the solve.
        dequantization: "truncated_normal", "uniform" or "variational".
        trace: "hutchinson" or "exact" (one pass per dimension, for small images).
        probes: Rademacher probes per image; the trace's variance falls as 1/probes.
        draws: dequantisation draws K per image.
        dtype: of state and noise, "float32" or "float64" (the latter needs jax_enable_x64).

    Raises:
        ValueError: an unknown name or a count below 1.
    """

    control: flow.Control = flow.FixedGrid()
    dequantization: str = "truncated_normal"
    trace: str = "hutchinson"
    probes: int = 1
    draws: int = 1
    dtype: str = "float32"

    def __post_init__(self):
        if self.dequantization not in METHODS:
            raise ValueError(f"dequantization must be one of {METHODS}, got {self.dequantization!r}.")
        if self.trace not in ("hutchinson", "exact"):
            raise ValueError(f"trace must be 'hutchinson' or 'exact', got {self.trace!r}.")
        if self.probes < 1 or self.draws < 1:
            raise ValueError(f"probes and draws must be at least 1, got {self.probes} and {self.draws}.")


class Likelihood(NamedTuple):
    """Per image; terms in bits per dimension add up to `bpd` for a single draw.

    Attributes:
        bpd: -log P / (D ln 2) [B].
        prior: -log p(z_T) [B].
        trace: minus the integral of the divergence [B].
        dequantization: log q(z_0 | x), in expectation for a single draw [B].
        decoder: -log p(x | z_0); zero unless the dequantisation is variational [B].
        error: the solver's estimated error of bpd [B].
        nfe: network calls per image; each also carries tangents [B].
        ok: whether the solve succeeded and the result is finite [B].
    """

    bpd: Float[Array, " B"]
    prior: Float[Array, " B"]
    trace: Float[Array, " B"]
    dequantization: Float[Array, " B"]
    decoder: Float[Array, " B"]
    error: Float[Array, " B"]
    nfe: Float[Array, " B"]
    ok: Bool[Array, " B"]


def gaussian_prior(z: Float[Array, "B H W C"], gamma: float) -> Float[Array, " B"]:
    """log N(z; 0, sigma(gamma)^2 I) in nats, the prior of sampling and likelihood."""
    variance = jax.nn.sigmoid(jnp.asarray(gamma, z.dtype))
    size = math.prod(z.shape[1:])
    return -0.5 * (jnp.sum(z**2, axis=(1, 2, 3)) / variance + size * jnp.log(2 * jnp.pi * variance))


def start_gamma(expert: Expert, dequantization: str, scale: PixelScale) -> float:
    """The noise level at which the dequantised state lives: the expert's lowest, or the uniform method's own.

    Raises:
        ValueError: uniform dequantisation below the expert's range.
    """
    if dequantization != "uniform":
        return expert.gamma_range[0]
    check_range(expert, scale.uniform_gamma, scale.uniform_gamma, what="uniform dequantisation")
    return scale.uniform_gamma


def probes_for(keys: Key[Array, " B"], shape: tuple[int, ...], settings: Settings) -> Float[Array, "P b H W C"]:
    """Rademacher probes of every image, or the exact trace's unit vectors."""
    if settings.trace == "exact":
        return flow.exact_probes(shape, settings.dtype)
    probe_keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)
    return flow.rademacher_probes(probe_keys, settings.probes, shape, settings.dtype)


def log_likelihood(
    expert: Expert,
    images: UInt8[Array, "B H W C"],
    *,
    key: Key[Array, ""],
    index: Int[Array, " B"] | None = None,
    scale: PixelScale | None = None,
    settings: Settings = Settings(),
    terminal: Terminal = gaussian_prior,
) -> Likelihood:
    """Bits per dimension of images under the probability flow of an expert; jit it with static settings.

    Args:
        expert: any expert.
        images: grey levels [B, H, W, C].
        key: dequantisation noise and probes of image i come from (key, index[i]).
        index: identity of each image [B]; its position by default.
        scale: grey levels, where the expert does not know them itself.
        settings: how to compute it.
        terminal: log-density of the state at the highest noise; analytic experts have an exact one,
            ``lambda z, gamma: expert.log_prob(z, gamma)``.

    Raises:
        ValueError: no scale known, or noise levels outside the expert's range.
    """
    scale = scale or expert.pixel_scale
    if scale is None:
        raise ValueError("this expert does not know its grey levels; pass scale=PixelScale(levels).")
    index = jnp.arange(len(images)) if index is None else index
    keys = noise.image_keys(key, index)
    low = start_gamma(expert, settings.dequantization, scale)
    high = expert.gamma_range[1]
    probes = probes_for(keys, images.shape[1:], settings)
    bits = 1.0 / (math.prod(images.shape[1:]) * math.log(2))

    def single(draw):
        draw_keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, 0), draw))(keys)
        d = dequantize(
            settings.dequantization, images, scale=scale, keys=draw_keys, gamma=low, dtype=settings.dtype
        )
        with jax.default_matmul_precision("highest"):
            end = flow.solve(
                expert, d.z, low, high, rising=True, control=settings.control, probes=probes
            )
        return d, end, terminal(end.z, high)

    if settings.draws == 1:
        d, end, prior = single(0)
        log_q = -d.entropy
        log_prob = prior + end.divergence + d.log_p_x_given_z - log_q
    else:
        d, end, prior = jax.lax.map(single, jnp.arange(settings.draws))
        log_q = -d.neg_log_q
        each = prior + end.divergence + d.log_p_x_given_z - log_q
        log_prob = logsumexp(each, axis=0) - math.log(settings.draws)
    mean = functools.partial(jnp.mean, axis=0) if settings.draws > 1 else (lambda a: a)
    ok = (jnp.all(end.ok, axis=0) if settings.draws > 1 else end.ok) & jnp.isfinite(log_prob)
    return Likelihood(
        bpd=-bits * log_prob,
        prior=-bits * mean(prior),
        trace=-bits * mean(end.divergence),
        dequantization=bits * mean(log_q),
        decoder=-bits * mean(d.log_p_x_given_z),
        error=bits * mean(end.error),
        nfe=mean(end.nfe) * settings.draws,
        ok=ok,
    )


def _batch(settings, scale, expert, key, images, index):
    return log_likelihood(expert, images, key=key, index=index, scale=scale, settings=settings)


def evaluate(
    expert: Expert,
    images: UInt8[np.ndarray, "N H W C"],
    *,
    key: Key[Array, ""],
    index: Int[np.ndarray, " N"] | None = None,
    settings: Settings = Settings(),
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda n: None,
) -> Likelihood:
    """`log_likelihood` of any number of images, checked, sharded over all local devices.

    Args:
        expert: any expert that knows its grey levels.
        images: uint8 grey levels [N, H, W, C].
        key, index, settings: as in `log_likelihood`.
        batch_size: images per device and call.
        advance: called with the number of images done.

    Returns:
        numpy arrays [N].

    Raises:
        ValueError: images of another shape, dtype or number of grey levels.

    Example:
        >>> evaluate(shipped("digits_vdm"), images, key=jax.random.key(0)).bpd.mean()
        1.8...
    """
    scale = expert.pixel_scale
    images = scale.check(images, expert.image_shape)
    index = np.arange(len(images)) if index is None else np.asarray(index)
    return parallel.map_batches(
        _batch, (settings, scale), (expert, key), (images, index), batch_size=batch_size, advance=advance
    )


class Mean(NamedTuple):
    """A mean over the images whose solve succeeded.

    Attributes:
        mean: in bits per dimension.
        se: its standard error.
        count: images averaged.
        failed: images left out because their solve failed.
    """

    mean: float
    se: float
    count: int
    failed: int


def mean_bpd(result: Likelihood) -> Mean:
    """Mean bpd with its standard error; failed solves are counted, never averaged in."""
    return _mean(np.asarray(result.bpd, np.float64), np.asarray(result.ok))


def paired_difference(a: Likelihood, b: Likelihood) -> Mean:
    """Mean of a - b per image, with the standard error of the differences (same images, noise and probes)."""
    both = np.asarray(a.ok) & np.asarray(b.ok)
    return _mean(np.asarray(a.bpd, np.float64) - np.asarray(b.bpd, np.float64), both)


def _mean(values, ok) -> Mean:
    good = values[ok]
    if len(good) == 0:
        return Mean(math.nan, math.nan, 0, len(values))
    se = float(good.std(ddof=1) / math.sqrt(len(good))) if len(good) > 1 else math.nan
    return Mean(float(good.mean()), se, len(good), int(len(values) - len(good)))
