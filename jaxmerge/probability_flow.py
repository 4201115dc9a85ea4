"""The probability-flow ODE in gamma, solved piece by piece, with the divergence of its drift.

    dz/dgamma = h(z, gamma) = -1/2 sigmoid(gamma) z + 1/2 sigma eps_hat(z, gamma)     (Eq. 11)
    d log p / dgamma = -div h                                                         (Eq. 8, 13)

(arXiv 2511.19434; numbers in brackets are its equations. Its Eq. 8 and 13 print the opposite sign in
front of the integral, which with these limits is a misprint.)

A merge's field jumps at its thresholds. Pieces are solved one after the other, so that no step, no
error estimate and no stage crosses a switch, and only the piece's own expert is called, also at its
closed ends.

Three kinds of step control:

    FixedGrid     Bogacki-Shampine steps, linear in gamma within each piece. An image's result depends
                  on nothing but the image, and the cost is known beforehand. The default.
    PerImage      adaptive, each image its own steps (``vmap`` over the solve); a batch costs as much as
                  its slowest image.
    BatchCoupled  adaptive RK45 with one step size for the whole batch, as the public codes have it:
                  an image's result depends on its neighbours. For comparable numbers of calls.

The trace is taken in forward mode: inside a loop, XLA's reverse mode of convolutions is 10 to 45 times
slower on CPUs.
"""

import math
from typing import NamedTuple

import diffrax as dfx
import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmerge import multistep, noise
from jaxmerge.experts.base import Expert, Piece, check_range

# Third order with an embedded second-order solution, three calls per step. Higher orders do not pay:
# on trained networks RK4 and Dormand-Prince need as many calls for the same error.
GRID_SOLVER = dfx.Bosh3()
ADAPTIVE_SOLVER = dfx.Dopri5()


@flax.struct.dataclass
class FixedGrid:
    """Equal steps in gamma.

    Args:
        steps_per_gamma: steps per unit of gamma, in every piece (three network calls each). A leaf:
            another density compiles nothing anew.
    """

    steps_per_gamma: float = 2.0

    def __post_init__(self):
        if isinstance(self.steps_per_gamma, int | float) and not self.steps_per_gamma > 0:
            raise ValueError(f"steps_per_gamma must be positive, got {self.steps_per_gamma}.")

    def refined(self, factor: float) -> "FixedGrid":
        """The same grid with `factor` times as many steps."""
        return self.replace(steps_per_gamma=self.steps_per_gamma * factor)


@flax.struct.dataclass
class MultistepGrid(FixedGrid):
    """Third-order Adams-Bashforth steps, equal in s with ds = alpha dgamma (see ``multistep.py``).

    One call per step, and four more in every piece. `steps_per_gamma` is the density at low noise, where
    s is gamma; it falls as alpha. Also independent of the batch, with a cost that is known beforehand.
    """


@flax.struct.dataclass
class PerImage:
    """Adaptive steps, chosen for each image on its own.

    Args:
        rtol, atol: relative and absolute tolerance of state and log-density.
        max_steps: after which a solve counts as failed.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = flax.struct.field(pytree_node=False, default=4096)


@flax.struct.dataclass
class BatchCoupled(PerImage):
    """Adaptive steps, one size for the whole batch, from the error of all images together."""


Control = FixedGrid | PerImage | BatchCoupled


class Solution(NamedTuple):
    """End of a solve.

    Attributes:
        z: state at the end [B, H, W, C].
        divergence: integral of div h over gamma, from start to end, in nats [B]; 0 where no probes were given.
        error: bound on the error of `divergence` for the fixed grid, the sum of the embedded pair's local
            errors without their signs (the signed sum cancels by chance); 20 to 200 times the error on
            smooth fields. Zero for adaptive steps [B].
        nfe: network calls per image [B].
        ok: whether the solve succeeded and all numbers are finite [B].
    """

    z: Float[Array, "B H W C"]
    divergence: Float[Array, " B"]
    error: Float[Array, " B"]
    nfe: Float[Array, " B"]
    ok: Bool[Array, " B"]


def drift(expert: Expert, z: Float[Array, "B H W C"], gamma: Float[Array, ""]) -> Float[Array, "B H W C"]:
    """h(z, gamma) of Eq. 11."""
    gamma = jnp.asarray(gamma, z.dtype)
    return 0.5 * (noise.sigma(gamma) * expert.eps_hat(z, gamma) - jax.nn.sigmoid(gamma) * z)


def drift_and_divergence(
    expert: Expert, z: Float[Array, "B H W C"], gamma: Float[Array, ""], probes: Float[Array, "P B H W C"]
) -> tuple[Float[Array, "B H W C"], Float[Array, " B"]]:
    """h and its Skilling-Hutchinson trace, the mean over probes of v^T (dh/dz) v.

    The network is linearised once and the probes are pushed through by ``vmap``. The linear part of h
    has an exact trace. `exact_probes` turn the mean into the exact trace.

    Args:
        probes: [P, B, H, W, C] or [P, 1, H, W, C].
    """
    gamma = jnp.asarray(gamma, z.dtype)
    eps_hat, tangent = jax.linearize(lambda z: expert.eps_hat(z, gamma), z)

    def quadratic(v):
        v = jnp.broadcast_to(v, z.shape).astype(z.dtype)
        return jnp.sum(v * tangent(v), axis=(1, 2, 3))

    trace = jnp.mean(jax.vmap(quadratic)(probes), axis=0)
    size = math.prod(z.shape[1:])
    divergence = 0.5 * (noise.sigma(gamma) * trace - jax.nn.sigmoid(gamma) * size)
    return 0.5 * (noise.sigma(gamma) * eps_hat - jax.nn.sigmoid(gamma) * z), divergence


def rademacher_probes(
    keys, count: int, shape: tuple[int, ...], dtype=jnp.float32
) -> Float[Array, "P B H W C"]:
    """Random signs [count, B, *shape], drawn per image from its key."""
    draw = jax.vmap(lambda key: jax.random.rademacher(key, (count, *shape), dtype))
    return jnp.moveaxis(draw(keys), 1, 0)


def exact_probes(shape: tuple[int, ...], dtype=jnp.float32) -> Float[Array, "D 1 H W C"]:
    """Probes whose mean quadratic form is the exact trace: sqrt(D) times the unit vectors."""
    size = math.prod(shape)
    return (math.sqrt(size) * jnp.eye(size, dtype=dtype)).reshape(size, 1, *shape)


def segments(expert: Expert, start, end, *, rising: bool) -> list[Piece]:
    """The pieces between two noise levels, in the order of travel; each runs from its first to its second level.

    Args:
        rising: whether `end` lies above `start` (static; the levels may be traced).
    """
    pieces = expert.pieces()
    low, high = (start, end) if rising else (end, start)
    inner = [jnp.clip(jnp.asarray(p.gamma_high), low, high) for p in pieces[:-1]]
    edges = [low, *inner, high]
    parts = [Piece(a, b, p.expert) for a, b, p in zip(edges[:-1], edges[1:], pieces, strict=True)]
    return parts if rising else [Piece(p.gamma_high, p.gamma_low, p.expert) for p in reversed(parts)]


def solve(
    expert: Expert,
    z: Float[Array, "B H W C"],
    start,
    end,
    *,
    rising: bool,
    control: Control,
    probes: Float[Array, "P B H W C"] | None = None,
) -> Solution:
    """Carries z along the probability flow from noise level `start` to `end`.

    Args:
        expert: any expert; its pieces are solved one after the other.
        z: states at `start`.
        start, end: noise levels, concrete or traced.
        rising: whether `end` lies above `start`.
        control: step control.
        probes: Hutchinson probes, fixed for the whole solve; None leaves the divergence out.

    Returns:
        The states at `end` and what the solve cost.

    Raises:
        ValueError: concrete levels outside the expert's range, or in the order that `rising` excludes; a
            divergence of a field that jumps with z.
    """
    if isinstance(start, int | float) and isinstance(end, int | float):
        _check_levels(expert, start, end, rising)
    batch = len(z)
    zero = jnp.zeros(batch, z.dtype)
    done = Solution(z, zero, zero, zero, jnp.ones(batch, bool))
    for piece in segments(expert, start, end, rising=rising):
        if probes is not None and not piece.expert.smooth:
            raise ValueError(
                "the exact likelihood is defined for fields that are continuous in z only, and this mixture's "
                "choice of experts (top_k) jumps with z, which the trace misses; use the bound (vlb.bound), or "
                "the dense mixture."
            )
        step = _solve_piece(piece, done.z, control, probes)
        done = Solution(
            step.z,
            done.divergence + step.divergence,
            done.error + step.error,
            done.nfe + step.nfe,
            done.ok & step.ok,
        )
    finite = jnp.all(jnp.isfinite(done.z), axis=(1, 2, 3)) & jnp.isfinite(done.divergence)
    return done._replace(ok=done.ok & finite)


def _check_levels(expert: Expert, start: float, end: float, rising: bool) -> None:
    if (start < end) != rising and start != end:
        raise ValueError(
            f"a solve with rising={rising} cannot run from gamma {start:.4f} to {end:.4f}; pass rising={not rising}."
        )
    check_range(expert, min(start, end), max(start, end), what="the probability flow")


def _field(probes):
    """The right-hand side on the state (z, integral of the divergence), with the expert as diffrax's args."""

    def field(gamma, state, expert):
        if probes is None:
            return drift(expert, state[0], gamma), jnp.zeros_like(state[1])
        return drift_and_divergence(expert, state[0], gamma, probes)

    return dfx.ODETerm(field)


def _solve_piece(piece: Piece, z, control: Control, probes) -> Solution:
    if isinstance(control, MultistepGrid):
        return _multistep(piece, z, control, probes)
    if isinstance(control, FixedGrid):
        return _fixed(piece, z, control, probes)
    if isinstance(control, BatchCoupled):
        return _adaptive(piece, z, control, probes)
    # Each image is a batch of one, so that its steps are its own.
    axis = None if probes is None or probes.shape[1] == 1 else 1

    def single(i, z, probes):
        probes = probes if axis is None else probes[:, None]
        own = piece._replace(expert=piece.expert.of_image(i))
        return jax.tree.map(lambda a: a[0], _adaptive(own, z[None], control, probes))

    return jax.vmap(single, in_axes=(0, 0, axis))(jnp.arange(len(z)), z, probes)


def _fixed(piece: Piece, z, control: FixedGrid, probes) -> Solution:
    start, end = (jnp.asarray(g, z.dtype) for g in (piece.gamma_low, piece.gamma_high))
    # The subtraction guards against ceil(12.000001); the narrowest piece takes a step, an empty one none.
    steps = jnp.ceil(jnp.abs(end - start) * control.steps_per_gamma - 1e-3).astype(jnp.int32)
    steps = jnp.maximum(steps, (end != start).astype(jnp.int32))
    width = (end - start) / jnp.maximum(steps, 1)
    terms, expert = _field(probes), piece.expert

    def step(i, carry):
        state, solver_state, error = carry
        t0 = start + i * width
        t1 = jnp.where(i == steps - 1, end, start + (i + 1) * width)
        state, local, _, solver_state, _ = GRID_SOLVER.step(
            terms, t0, t1, state, expert, solver_state, made_jump=False
        )
        return state, solver_state, error + jnp.abs(local[1])

    state = (z, jnp.zeros(len(z), z.dtype))
    carry = (state, GRID_SOLVER.init(terms, start, start + width, state, expert), jnp.zeros(len(z), z.dtype))
    (z, divergence), _, error = jax.lax.fori_loop(0, steps, step, carry)
    nfe = jnp.full(len(z), 3.0, z.dtype) * steps + (steps > 0)
    return Solution(z, divergence, error, nfe, jnp.ones(len(z), bool))


def _multistep(piece: Piece, z, control: MultistepGrid, probes) -> Solution:
    start, end = (jnp.asarray(g, z.dtype) for g in (piece.gamma_low, piece.gamma_high))

    def only_drift(z, gamma):
        return drift(piece.expert, z, gamma)

    def with_divergence(z, gamma):
        return drift_and_divergence(piece.expert, z, gamma, probes)

    rates = None if probes is None else with_divergence
    z, divergence, error, calls = multistep.integrate(
        only_drift, rates, z, start, end, control.steps_per_gamma
    )
    return Solution(z, divergence, error, jnp.full(len(z), calls, z.dtype), jnp.ones(len(z), bool))


def _adaptive(piece: Piece, z, control: PerImage, probes) -> Solution:
    start, end = (jnp.asarray(g, z.dtype) for g in (piece.gamma_low, piece.gamma_high))
    solution = dfx.diffeqsolve(
        _field(probes),
        ADAPTIVE_SOLVER,
        t0=start,
        t1=end,
        # diffrax's own guess is always 0.01, without regard to direction or scale.
        dt0=(end - start) / 50,
        y0=(z, jnp.zeros(len(z), z.dtype)),
        args=piece.expert,
        stepsize_controller=dfx.PIDController(rtol=control.rtol, atol=control.atol),
        max_steps=control.max_steps,
        throw=False,
    )
    z, divergence = (y[0] for y in solution.ys)
    steps = solution.stats["num_steps"]
    nfe = jnp.broadcast_to(6.0 * steps + (steps > 0), len(z)).astype(z.dtype)
    ok = jnp.broadcast_to(solution.result == dfx.RESULTS.successful, len(z))
    return Solution(z, divergence, jnp.zeros(len(z), z.dtype), nfe, ok)
