"""Samplers: probability-flow ODE, ancestral, and Heun on EDM's noise grid, for any expert.

All start at z ~ N(0, sigma_T^2 I), sigma_T^2 = sigmoid(gamma_max), walk down an expert's pieces and end
with the decoder p(x | z_0). Sample i's noise follows from (key, i) alone.

    ode        Alg. 1 of arXiv 2511.19434: high expert from gamma_max to the switch, low one to gamma_min.
    ancestral  Alg. 2, T uniform steps: c = -expm1(gamma_s - gamma_t),
               z_s = alpha_s / alpha_t (z_t - c sigma_t eps_hat) + sigma_s sqrt(c) noise.
    heun       Karras et al. 2022, Alg. 1 without churn, rho = 7, in y = z / alpha, where
               dy / d sigma_edm = eps_hat. The switch is an exact node of the grid.

EDM's own sampler ends with an Euler step to sigma = 0 (18 steps, 35 calls) instead of a decoder;
``final="denoise"`` does that.
"""

from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxmerge import decoder, noise, parallel
from jaxmerge import probability_flow as flow
from jaxmerge.experts.base import Expert
from jaxmerge.experts.labels import Labels
from jaxmerge.noise import PixelScale

SAMPLERS = ("ode", "ancestral", "heun")
RHO = 7.0


@flax.struct.dataclass
class Settings:
    """How samples are drawn; a pytree whose only leaves are the control's numbers.

    Args:
        sampler: "ode", "ancestral" or "heun".
        steps: of the ancestral sampler or of Heun's grid.
        control: step control of the ODE sampler.
        decoder: "argmax" (the public codes) or "sample" (the literal reading of the algorithms).
        final: "decode" ends at gamma_min with the decoder; "denoise" takes one more call and ends at
            sigma = 0 with the denoised image, as EDM's sampler does.

    Raises:
        ValueError: an unknown name or too few steps.
    """

    sampler: str = flax.struct.field(pytree_node=False, default="heun")
    steps: int = flax.struct.field(pytree_node=False, default=18)
    control: flow.Control = flow.PerImage()
    decoder: str = flax.struct.field(pytree_node=False, default="argmax")
    final: str = flax.struct.field(pytree_node=False, default="decode")

    def __post_init__(self):
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {SAMPLERS}, got {self.sampler!r}.")
        if self.decoder not in ("argmax", "sample"):
            raise ValueError(f"decoder must be 'argmax' or 'sample', got {self.decoder!r}.")
        if self.final not in ("decode", "denoise"):
            raise ValueError(f"final must be 'decode' or 'denoise', got {self.final!r}.")
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, got {self.steps}.")


def initial_state(
    key: Key[Array, ""], index: Int[Array, " N"], shape: tuple[int, int, int], gamma_max
) -> Float[Array, "N H W C"]:
    """z ~ N(0, sigma(gamma_max)^2 I), the prior, drawn per image."""
    start_key = jax.random.fold_in(key, 0)
    return noise.sigma(gamma_max) * noise.image_normal(start_key, index, shape)


def noise_grid(steps: int, gamma_max: float, gamma_min: float) -> np.ndarray:
    """EDM's sigma_edm levels (Eq. 5, rho = 7), descending [steps], float64."""
    high, low = np.exp(0.5 * np.asarray([gamma_max, gamma_min])) ** (1 / RHO)
    grid = (high + np.linspace(0, 1, steps) * (low - high)) ** RHO
    # The ends exactly: a power of a root rounds.
    grid[0], grid[-1] = np.exp(0.5 * gamma_max), np.exp(0.5 * gamma_min)
    return grid


def heun_step(expert: Expert, y: Float[Array, "N H W C"], s, s_next) -> Float[Array, "N H W C"]:
    """One Heun step of dy / d sigma_edm = eps_hat from s to s_next, both answered by `expert`."""

    # A loop over the two stages: the network is compiled once, not twice.
    def stage(k, carry):
        total, point = carry
        slope = _slope(expert, point, jnp.where(k == 0, s, s_next))
        return total + slope, y + (s_next - s) * slope

    total, _ = jax.lax.fori_loop(0, 2, stage, (jnp.zeros_like(y), y))
    return y + (s_next - s) * 0.5 * total


def _slope(expert, y, s):
    gamma = 2.0 * jnp.log(s)
    return expert.eps_hat(noise.alpha(gamma) * y, gamma)


def heun_segment(
    expert: Expert, y: Float[Array, "N H W C"], start, end, grid: Float[Array, " S"]
) -> tuple[Float[Array, "N H W C"], Float[Array, ""]]:
    """Heun steps over the grid's nodes between two (possibly traced) levels, which are nodes too.

    Args:
        start, end: sigma_edm, start above end, both within the grid.

    Returns:
        y at `end` and the number of network calls.
    """
    first = jnp.sum(grid >= start) - 1
    # A segment without length, as nested merges can have, has no steps even inside an interval.
    last = jnp.where(start > end, jnp.sum(grid > end) - 1, first - 1)

    def step(i, y):
        return heun_step(expert, y, jnp.minimum(grid[i], start), jnp.maximum(grid[i + 1], end))

    y = jax.lax.fori_loop(first, last + 1, step, y)
    return y, 2.0 * (last + 1 - first)


def heun(
    expert: Expert, z: Float[Array, "N H W C"], steps: int
) -> tuple[Float[Array, "N H W C"], Float[Array, ""]]:
    """Heun from the expert's highest noise to its lowest; returns z_0 and the network calls."""
    low, high = expert.gamma_range
    grid = jnp.asarray(noise_grid(steps, high, low), z.dtype)
    y, nfe = z / noise.alpha(jnp.asarray(high, z.dtype)), jnp.zeros(())
    parts = flow.segments(expert, high, low, rising=False)
    for i, piece in enumerate(parts):
        start = grid[0] if i == 0 else noise.sigma_edm(jnp.asarray(piece.gamma_low, z.dtype))
        end = grid[-1] if i == len(parts) - 1 else noise.sigma_edm(jnp.asarray(piece.gamma_high, z.dtype))
        y, calls = heun_segment(piece.expert, y, start, end, grid)
        nfe = nfe + calls
    return y * noise.alpha(jnp.asarray(low, z.dtype)), nfe


def node_below(gamma, span: tuple[float, float], steps: int) -> Int[Array, ""]:
    """The last node t of a uniform grid 0 ... T over `span` with t / T <= the threshold's eta.

    The comparison is exact: a node within a thousandth of a step of the threshold counts as lying on it,
    so that rounding never puts it on the wrong side.
    """
    position = noise.eta_of_gamma(jnp.asarray(gamma), *span) * steps
    return jnp.floor(position + 1e-3).astype(jnp.int32)


def piece_nodes(expert: Expert, steps: int) -> list[tuple[Expert, Int[Array, ""], Int[Array, ""]]]:
    """For each piece, the nodes t of a uniform grid 0 ... T that it answers: first < t <= last."""
    pieces = expert.pieces()
    edges = [jnp.zeros((), jnp.int32)]
    edges += [node_below(piece.gamma_high, expert.gamma_range, steps) for piece in pieces[:-1]]
    edges.append(jnp.asarray(steps, jnp.int32))
    return [(p.expert, a, b) for p, a, b in zip(pieces, edges[:-1], edges[1:], strict=True)]


def ancestral_walk(
    expert: Expert,
    z: Float[Array, "N H W C"],
    first: Int[Array, ""] | int,
    last: Int[Array, ""] | int,
    *,
    span: tuple[float, float],
    steps: int,
    key: Key[Array, ""],
    index: Int[Array, " N"],
) -> Float[Array, "N H W C"]:
    """Ancestral steps of one expert from node `first` down to node `last` of a uniform grid over `span`.

    Step t's noise is drawn from (key, t, index).
    """
    step_key = jax.random.fold_in(key, 1)
    low, high = span

    def gamma_at(t):
        return jnp.asarray(low + (high - low) * (t / steps), z.dtype)

    def step(i, z):
        t = first - i
        fresh = noise.image_normal(jax.random.fold_in(step_key, t), index, z.shape[1:])
        return ancestral_step(expert, z, gamma_at(t), gamma_at(t - 1), fresh.astype(z.dtype))

    return jax.lax.fori_loop(0, first - last, step, z)


def ancestral(
    expert: Expert, z: Float[Array, "N H W C"], steps: int, *, key: Key[Array, ""], index: Int[Array, " N"]
) -> tuple[Float[Array, "N H W C"], Float[Array, ""]]:
    """Alg. 2 from the expert's highest noise to its lowest; returns z_0 and the network calls."""
    for single, last, first in reversed(piece_nodes(expert, steps)):
        z = ancestral_walk(single, z, first, last, span=expert.gamma_range, steps=steps, key=key, index=index)
    return z, jnp.asarray(float(steps))


def ancestral_step(
    expert: Expert, z: Float[Array, "N H W C"], gamma_t, gamma_s, fresh: Float[Array, "N H W C"]
) -> Float[Array, "N H W C"]:
    """z_s given z_t: mean alpha_s / alpha_t (z - c sigma_t eps_hat), standard deviation sigma_s sqrt(c)."""
    c = -jnp.expm1(gamma_s - gamma_t)
    ratio = noise.alpha(gamma_s) / noise.alpha(gamma_t)
    mean = ratio * (z - c * noise.sigma(gamma_t) * expert.eps_hat(z, gamma_t))
    return mean + noise.sigma(gamma_s) * jnp.sqrt(c) * fresh


def finish(
    expert: Expert,
    z0: Float[Array, "N H W C"],
    settings: Settings,
    scale: PixelScale,
    *,
    key: Key[Array, ""],
    index: Int[Array, " N"],
) -> UInt8[Array, "N H W C"]:
    """From the last state to grey levels, as ``settings.decoder`` and ``settings.final`` say."""
    low = expert.gamma_range[0]
    if settings.final == "denoise":
        return scale.nearest(expert.denoise(z0, low))
    keys = None
    if settings.decoder == "sample":
        keys = noise.image_keys(jax.random.fold_in(key, 2), index)
    return decoder.decode(z0, low, scale, keys=keys)


def sample(
    expert: Expert,
    index: Int[Array, " N"],
    *,
    key: Key[Array, ""],
    settings: Settings = Settings(),
    scale: PixelScale | None = None,
    shape: tuple[int, int, int] | None = None,
) -> tuple[UInt8[Array, "N H W C"], Float[Array, " N"]]:
    """Images of an expert and the network calls per image; made for ``jax.jit``.

    Args:
        expert: any expert.
        index: identity of each sample [N]; equal (key, index) start from the same noise whatever the expert.
        key: of all noise.
        settings: sampler, steps and decoder.
        scale, shape: grey levels and (H, W, C), where the expert does not know them itself.

    Raises:
        ValueError: no scale or shape known.
    """
    scale, shape = scale or expert.pixel_scale, shape or expert.image_shape
    if scale is None or shape is None:
        raise ValueError("this expert does not know its grey levels and image shape; pass scale= and shape=.")
    low, high = expert.gamma_range
    z = initial_state(key, index, shape, high)
    if settings.sampler == "heun":
        z0, nfe = heun(expert, z, settings.steps)
    elif settings.sampler == "ancestral":
        z0, nfe = ancestral(expert, z, settings.steps, key=key, index=index)
    else:
        end = flow.solve(expert, z, high, low, rising=False, control=settings.control)
        z0, nfe = end.z, end.nfe
    nfe = jnp.broadcast_to(nfe, len(index)) + (settings.final == "denoise")
    return finish(expert, z0, settings, scale, key=key, index=index), nfe


def _batch(settings, expert, key, index, labels=None):
    expert = expert if labels is None else expert.with_labels(labels)
    return sample(expert, index, key=key, settings=settings)


def generate(
    expert: Expert,
    count: int,
    *,
    key: Key[Array, ""],
    settings: Settings = Settings(),
    labels: Labels | None = None,
    first: int = 0,
    batch_size: int = 250,
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[UInt8[np.ndarray, "N H W C"], Float[np.ndarray, " N"]]:
    """Samples number `first` to `first + count - 1`, sharded over all local devices.

    Args:
        expert: an expert that knows its grey levels and image shape.
        count: number of images.
        key, settings: as in `sample`.
        labels: of a conditional expert, one per sample or one for all (see `Expert.with_labels`).
        first: number of the first sample.
        batch_size: images per device and call.
        advance: called with the number of images done.

    Returns:
        uint8 grey levels [N, H, W, C] and network calls per image [N].

    Raises:
        ValueError: no samples asked for, or labels that do not fit.

    Example:
        >>> images, nfe = generate(Switch(vdm, edm, eta=0.2), 16, key=jax.random.key(0))
    """
    index = np.arange(first, first + count)
    arrays = (index,) if labels is None else (index, expert.label_rows(labels, count))
    return parallel.map_batches(
        _batch, (), (settings, expert, key), arrays, batch_size=batch_size, advance=advance
    )
