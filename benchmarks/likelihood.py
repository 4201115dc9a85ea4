"""This package's likelihood against the classical way, on the same weights, images, noise and probes.

    python -m benchmarks.likelihood [--images 32] [--eta 0.3] [--tolerance 0.002]
        [--image-tolerance 0.01] [--repeats 3]

Here: pieces on a fixed multistep grid that was chosen on training images, forward-mode trace, one
program; images whose estimated error is above the image tolerance are solved again on a finer grid (their
cost is in the time).

Classical (as the public codes of VDM, i-DODE and score SDE do it): SciPy's RK45 on the host with rtol =
atol = 1e-5 and one step size for the whole batch, on one flat vector of all states and log-densities;
the drift and its reverse-mode trace are one jitted call. Reverse mode is slow inside XLA loops on CPUs,
but not here, outside any loop. A merge is two solves, one on each side of the threshold.

The last line is one JSON object:

    speedup        classical seconds / ours, both warm
    delta_bpd      mean bpd of ours minus classical
    max_delta_bpd  largest |difference| of one image
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from jaxmerge import grids, likelihood, noise, parallel
from jaxmerge import probability_flow as flow
from jaxmerge.data import digits
from jaxmerge.dequantize import dequantize
from jaxmerge.experts import io
from jaxmerge.merge import Switch

TOLERANCE_CLASSICAL = 1e-5
GRID_IMAGES = 32


def seconds_of(function):
    """(result, wall seconds) of a call that returns host arrays."""
    begin = time.perf_counter()
    return function(), time.perf_counter() - begin


@jax.jit
def rates(expert, z, gamma, probe):
    """Drift and vjp trace, probe^T (dh/dz) probe per image, at full float32."""
    with jax.default_matmul_precision("highest"):
        h, pull = jax.vjp(lambda z: flow.drift(expert, z, gamma), z)
        return h, jnp.sum(pull(probe)[0] * probe, axis=(1, 2, 3))


class Classical:
    """The classical likelihood of one batch of images.

    Args:
        expert: a merge; its pieces are solved one after the other.
        images: grey levels [B, H, W, C].
        key: the same noise and probes as in `likelihood.log_likelihood`.
        settings: its dequantisation and number of probes (one).
    """

    def __init__(self, expert, images, key, settings):
        scale = expert.pixel_scale
        keys = noise.image_keys(key, jnp.arange(len(images)))
        draw_keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, 0), 0))(keys)
        self.gammas = expert.gamma_range
        d = dequantize(settings.dequantization, images, scale=scale, keys=draw_keys, gamma=self.gammas[0])
        self.z0, self.entropy = np.asarray(d.z), np.asarray(d.entropy, np.float64)
        self.probe = likelihood.probes_for(keys, images.shape[1:], settings)[0]
        self.pieces = flow.segments(expert, *self.gammas, rising=True)
        self.calls = 0

    def solve(self) -> np.ndarray:
        """bpd [B]."""
        shape, batch = self.z0.shape, len(self.z0)
        state = np.concatenate([self.z0.reshape(-1), np.zeros(batch)]).astype(np.float64)
        self.calls = 0
        for piece in self.pieces:

            def field(gamma, state, expert=piece.expert):
                self.calls += 1
                z = jnp.asarray(state[:-batch].reshape(shape), jnp.float32)
                h, trace = rates(expert, z, jnp.float32(gamma), self.probe)
                return np.concatenate([np.asarray(h, np.float64).reshape(-1), np.asarray(trace, np.float64)])

            ends = float(piece.gamma_low), float(piece.gamma_high)
            end = solve_ivp(
                field, ends, state, method="RK45", rtol=TOLERANCE_CLASSICAL, atol=TOLERANCE_CLASSICAL
            )
            if not end.success:
                raise RuntimeError(
                    f"RK45 failed between gamma {ends[0]:.3f} and {ends[1]:.3f}: {end.message}"
                )
            state = end.y[:, -1]
        z = jnp.asarray(state[:-batch].reshape(shape), jnp.float32)
        prior = np.asarray(likelihood.gaussian_prior(z, self.gammas[1]), np.float64)
        return -(prior + state[-batch:] + self.entropy) / (z[0].size * np.log(2))

    def compile(self) -> None:
        """Compiles the drift of every piece."""
        for piece in self.pieces:
            jax.block_until_ready(rates(piece.expert, self.z0, jnp.float32(piece.gamma_low), self.probe))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--eta", type=float, default=0.3)
    parser.add_argument("--tolerance", type=float, default=0.002)
    parser.add_argument("--image-tolerance", type=float, default=0.01)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    parallel.use_all_cores()

    expert = Switch(io.shipped("digits_vdm"), io.shipped("digits_edm"), eta=args.eta)
    images = digits.load("test").images[: args.images]
    key = jax.random.key(0)
    print(f"{len(images)} test digits, eta {args.eta}, {parallel.describe_devices()}")

    def evaluate(settings, refinement=None):
        return likelihood.evaluate(
            expert, images, key=key, settings=settings, refinement=refinement, batch_size=len(images)
        )

    # The grid's density is no constant of the program, so this compiles it once and for all.
    coarse = likelihood.Settings(control=flow.MultistepGrid(1.0))
    first, again = (seconds_of(lambda: evaluate(coarse))[1] for _ in range(2))
    grid = grids.choose_grid(
        expert,
        digits.load("train").images[:GRID_IMAGES],
        key=jax.random.key(1),
        tolerance=args.tolerance,
        settings=coarse,
        first=1.0,
        batch_size=GRID_IMAGES,
    )
    refinement = likelihood.Refinement(args.image_tolerance, grid.refinement.error_scale)
    settings = likelihood.Settings(control=grid.control)
    print(f"grid: {grid.control.steps_per_gamma:g} steps per gamma; mean changes {grid.mean_change}")

    classical = Classical(expert, images, key, settings)
    compilation = seconds_of(classical.compile)[1]

    # In turn, and the best of each, so that other work on the machine meets both alike.
    ours, bpd = evaluate(settings, refinement), None
    warm = slow = float("inf")
    for _ in range(args.repeats):
        warm = min(warm, seconds_of(lambda: evaluate(settings, refinement))[1])
        bpd, seconds = seconds_of(classical.solve)
        slow = min(slow, seconds)
    print(
        f"ours: compilation {first - again:.1f} s, warm {warm:.2f} s, {ours.nfe.mean():.0f} calls per image, "
        f"{int(ours.refined.sum())} images refined, {int((~ours.ok).sum())} failed"
    )
    print(f"classical: compilation {compilation:.1f} s, warm {slow:.2f} s, {classical.calls} calls per image")
    print(f"bpd: ours {ours.bpd.mean():.4f}, classical {bpd.mean():.4f}")

    difference = np.asarray(ours.bpd, np.float64) - bpd
    print(
        json.dumps(
            {
                "speedup": round(slow / warm, 2),
                "delta_bpd": round(float(difference.mean()), 6),
                "max_delta_bpd": round(float(np.abs(difference).max()), 6),
            }
        )
    )


if __name__ == "__main__":
    main()
