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
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from jaxmerge import noise, parallel
from jaxmerge import probability_flow as flow
from jaxmerge.dequantize import METHODS, dequantize
from jaxmerge.experts.base import Expert, check_range
from jaxmerge.experts.labels import Labels
from jaxmerge.noise import PixelScale

Terminal = Callable[[Float[Array, "B H W C"], float], Float[Array, " B"]]


@flax.struct.dataclass
class Settings:
    """How a likelihood is computed; a pytree whose only leaves are the control's numbers.

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
    dequantization: str = flax.struct.field(pytree_node=False, default="truncated_normal")
    trace: str = flax.struct.field(pytree_node=False, default="hutchinson")
    probes: int = flax.struct.field(pytree_node=False, default=1)
    draws: int = flax.struct.field(pytree_node=False, default=1)
    dtype: str = flax.struct.field(pytree_node=False, default="float32")

    def __post_init__(self):
        if self.dequantization not in METHODS:
            raise ValueError(f"dequantization must be one of {METHODS}, got {self.dequantization!r}.")
        if self.trace not in ("hutchinson", "exact"):
            raise ValueError(f"trace must be 'hutchinson' or 'exact', got {self.trace!r}.")
        if self.probes < 1 or self.draws < 1:
            raise ValueError(f"probes and draws must be at least 1, got {self.probes} and {self.draws}.")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}.")


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
        refined: whether the image was solved again on a finer grid [B].
    """

    bpd: Float[Array, " B"]
    prior: Float[Array, " B"]
    trace: Float[Array, " B"]
    dequantization: Float[Array, " B"]
    decoder: Float[Array, " B"]
    error: Float[Array, " B"]
    nfe: Float[Array, " B"]
    ok: Bool[Array, " B"]
    refined: Bool[Array, " B"]


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


def probes_for(
    keys: Key[Array, " B"], shape: tuple[int, ...], settings: Settings
) -> Float[Array, "P b H W C"]:
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
    """Bits per dimension of images under the probability flow of an expert; made for ``jax.jit``.

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
        ValueError: no scale known, noise levels outside the expert's range, or float64 while JAX has it off.
    """
    scale = scale or expert.pixel_scale
    if scale is None:
        raise ValueError("this expert does not know its grey levels; pass scale=PixelScale(levels).")
    if settings.dtype == "float64" and not jax.config.jax_enable_x64:
        raise ValueError(
            "a float64 likelihood needs jax_enable_x64, which is off; switch it on or ask for float32."
        )
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
            end = flow.solve(expert, d.z, low, high, rising=True, control=settings.control, probes=probes)
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
        refined=jnp.zeros(len(images), bool),
    )


def _batch(scale, settings, expert, key, images, index, labels=None):
    expert = expert if labels is None else expert.with_labels(labels)
    return log_likelihood(expert, images, key=key, index=index, scale=scale, settings=settings)


@dataclasses.dataclass(frozen=True)
class Refinement:
    """When an image counts as not accurate enough on a fixed grid, and what happens then.

    Args:
        tolerance: largest estimated error per image, bits per dimension.
        error_scale: ratio of the error to the embedded pair's estimate, measured by `choose_grid`.
        factor: how many times finer the second grid is.
    """

    tolerance: float
    error_scale: float = 1.0
    factor: float = 4.0


def refine(
    solve: Callable[[Settings, np.ndarray, np.ndarray, bool], Any],
    errors: Callable[[Any], Float[np.ndarray, " N"]],
    join: Callable[[Any, Any], Any],
    images: np.ndarray,
    index: np.ndarray,
    settings: Settings,
    refinement: Refinement | None,
) -> Any:
    """Solves all images, then those over tolerance once more on a finer grid.

    Args:
        solve: ``solve(settings, images, index, few)`` returns arrays with the images' axis first.
        errors: the estimated error of each image in such a result; not finite where the solve failed.
        join: from the first and the second result of the images that were solved again to the one that is
            reported: marked as refined, with the calls of both.
        images, index, settings: as in `evaluate`.
        refinement: None solves once.
    """
    result = solve(settings, images, index, False)
    if refinement is None or not isinstance(settings.control, flow.FixedGrid):
        return result
    # Written so that an error that is not a number counts as one over tolerance.
    over = np.flatnonzero(~(refinement.error_scale * errors(result) <= refinement.tolerance))
    if len(over) == 0:
        return result
    finer = settings.replace(control=settings.control.refined(refinement.factor))
    first = jax.tree.map(lambda a: np.asarray(a)[over], result)
    again = join(first, solve(finer, images[over], index[over], True))

    def put(old, new):
        old = np.array(old)
        old[over] = new
        return old

    return jax.tree.map(put, result, again)


def solved_twice(first: Likelihood, second: Likelihood) -> Likelihood:
    """The second solve of images, marked as refined, with the network calls of both."""
    return second._replace(nfe=first.nfe + second.nfe, refined=np.ones_like(second.refined))


def error_or_failure(result: Likelihood) -> Float[np.ndarray, "N ..."]:
    """The estimated error in bits per dimension, infinite where the solve failed."""
    return np.where(result.ok, result.error, np.inf)


def evaluate(
    expert: Expert,
    images: UInt8[np.ndarray, "N H W C"],
    *,
    key: Key[Array, ""],
    index: Int[np.ndarray, " N"] | None = None,
    settings: Settings = Settings(),
    labels: Labels | None = None,
    refinement: Refinement | None = None,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda n: None,
) -> Likelihood:
    """`log_likelihood` of any number of images, checked, sharded over all local devices.

    Args:
        expert: any expert that knows its grey levels.
        images: uint8 grey levels [N, H, W, C].
        key, index, settings: as in `log_likelihood`.
        labels: of a conditional expert, one per image or one for all (see `Expert.with_labels`).
        refinement: solve images over tolerance again on a finer grid.
        batch_size: images per device and call.
        advance: called with the number of images done.

    Returns:
        numpy arrays [N].

    Raises:
        ValueError: images of another shape, dtype or number of grey levels, or labels that do not fit.

    Example:
        >>> evaluate(shipped("digits_vdm"), images, key=jax.random.key(0)).bpd.mean()
        1.7...
    """
    scale = expert.pixel_scale
    if scale is None:
        raise ValueError(
            "evaluate needs an expert that knows its grey levels; use log_likelihood with scale=."
        )
    images = scale.check(images, expert.image_shape)
    index = np.arange(len(images)) if index is None else np.asarray(index)

    rows = (index,) if labels is None else (index, np.asarray(expert.label_rows(labels, len(images))))

    def solve(settings, images, places, few):
        return parallel.map_batches(
            _batch,
            (scale,),
            (settings, expert, key),
            (images, *(row[places] for row in rows)),
            batch_size=batch_size,
            advance=(lambda n: None) if few else advance,
            few=few,
        )

    places = np.arange(len(images))
    return refine(solve, error_or_failure, solved_twice, images, places, settings, refinement)


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
