"""What sharing saves: the sweep over thresholds, and the bound of every threshold from one pass.

    python -m benchmarks.sweep [--images 18] [--samples 100] [--density 2] [--strata 4] [--repeats 2]

Models: both digits experts and their merges at every standard threshold, with images and samples in the
proportion of configs/digits_merge.py. Both ways work on the same images, noise, batches and solver settings,
and both are warm (compiled before the clock starts); the smallest of `repeats` wall times counts. CPU times
stand beside them: on a machine with other work they tell more.

    sweep     likelihoods and Heun samples of all models. Shared: `sweeps.sweep_likelihood`,
              `sweeps.sweep_samples` and the two experts' own samples. Separate: `likelihood.evaluate` and
              `sampling.generate` of every model.
    bound     of every threshold. Shared: one `vlb.error_curves` pass. Separate: `vlb.bound` of the two single
              experts alone, with as many draws per image as the pass takes of each.
    errors    of each threshold's bound in the shared pass over those of a separate `vlb.bound` of the merge
              with the same number of draws: the standard error over images, and the Monte Carlo part of it,
              which repeated draws of the same images give.

The last line is one JSON object:

    sweep_cost_ratio      seconds of the shared sweep / of separate evaluations
    bound_cost_ratio      seconds of the shared pass / of the two single experts' bounds
    sweep_cpu_ratio       the same of CPU seconds
    bound_cpu_ratio
    max_se_ratio          largest ratio of standard errors over all thresholds
    mean_mc_error_ratio   mean ratio of the Monte Carlo errors over all thresholds
"""

import argparse
import functools
import json
import time

import jax
import numpy as np

from jaxmerge import likelihood, noise, parallel, sampling, sweeps, thresholds, vlb
from jaxmerge import probability_flow as flow
from jaxmerge.app import enable_compilation_cache
from jaxmerge.data import digits
from jaxmerge.experts import io
from jaxmerge.merge import Switch


def warm_seconds(functions, repeats: int) -> np.ndarray:
    """Smallest (wall, CPU) seconds of each compiled function [F, 2]; taken in turns, so that load is shared."""
    times = np.zeros((repeats, len(functions), 2))
    for row in times:
        for cell, function in zip(row, functions, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            cell[:] = time.perf_counter() - wall, time.process_time() - cpu
    return times.min(axis=0)


class Sweeps:
    """The same models, evaluated with and without sharing."""

    def __init__(self, low, high, etas, images, samples: int, density: float):
        self.low, self.high, self.etas, self.images, self.samples = low, high, etas, images, samples
        self.merges = [Switch(low, high, eta) for eta in etas]
        self.key = jax.random.key(0)
        self.settings = likelihood.Settings(control=flow.FixedGrid(density))
        self.heun = sampling.Settings("heun", 18)

    def evaluate(self, expert):
        return likelihood.evaluate(
            expert, self.images, key=self.key, settings=self.settings, batch_size=len(self.images)
        )

    def generate(self, expert):
        return sampling.generate(
            expert, self.samples, key=self.key, settings=self.heun, batch_size=self.samples
        )

    def shared(self):
        common = dict(key=self.key)
        found = sweeps.sweep_likelihood(
            self.low,
            self.high,
            self.etas,
            self.images,
            settings=self.settings,
            batch_size=len(self.images),
            **common,
        )
        drawn = sweeps.sweep_samples(
            self.low,
            self.high,
            self.etas,
            self.samples,
            settings=self.heun,
            batch_size=self.samples,
            **common,
        )
        return found, drawn, [self.generate(expert) for expert in (self.low, self.high)]

    def separate(self):
        models = [self.low, self.high, *self.merges]
        return [self.evaluate(m) for m in models], [self.generate(m) for m in models]

    def agreement(self) -> tuple[float, float]:
        """Largest difference of mean bpd and largest share of differing pixels between the two ways.

        This call compiles everything.
        """
        found, drawn, _ = self.shared()
        apart, images = self.separate()
        bpd = [
            abs(a.bpd.mean() - b.bpd.mean())
            for a, b in zip([found.low, *found.merged], [apart[0], *apart[2:]], strict=True)
        ]
        pixels = [np.mean(a != b[0]) for a, b in zip(drawn.images, images[2:], strict=True)]
        return float(max(bpd)), float(max(pixels))


def _bound(strata, expert, key, images, index):
    return vlb.bound(expert, images, key=key, index=index, strata=strata)


class Bounds:
    """The bound of every threshold in one pass, and separate bounds with the same draws."""

    def __init__(self, low, high, etas, images, strata: int):
        self.low, self.high, self.etas, self.images, self.strata = low, high, etas, images, strata
        self.span = low.gamma_range[0], high.gamma_range[1]

    def curves(self, images=None, index=None) -> vlb.Curves:
        images = self.images if images is None else images
        return vlb.error_curves(
            {"VDM": self.low, "EDM": self.high},
            images,
            key=jax.random.key(1),
            thresholds=[noise.gamma_of_eta(eta, *self.span) for eta in self.etas],
            index=index,
            per_interval=self.strata,
            batch_size=len(images),
        )

    def apart(self, expert, strata: int, images=None, key: int = 2) -> np.ndarray:
        """Bound [N] of any expert, `strata` draws per image and piece."""
        images = self.images if images is None else images
        terms = parallel.map_batches(
            _bound,
            (strata,),
            (expert, jax.random.key(key)),
            (images, np.arange(len(images))),
            batch_size=len(images),
        )
        return terms.astype(np.float64).sum(1)

    def singles(self, draws):
        return [self.apart(e, n) for e, n in zip((self.low, self.high), draws, strict=True)]

    def error_ratios(self, copies: int) -> tuple[list[float], list[float]]:
        """Per threshold: ratios of the standard errors over images, and of their Monte Carlo parts.

        Args:
            copies: independent draws of every image, from which the Monte Carlo part comes.
        """
        many = np.tile(self.images, (copies, 1, 1, 1))
        curves = self.curves(many)
        # The shared pass takes one draw per stratum for a merge; so does the separate one, half per piece.
        strata = len(curves.centres) // 2
        over_images, monte_carlo = [], []
        for eta in self.etas:
            here = curves.switch(noise.gamma_of_eta(eta, *self.span)).sum(1)
            apart = self.apart(Switch(self.low, self.high, eta), strata, many)
            here, apart = (v.reshape(copies, len(self.images)) for v in (here, apart))
            # Copy by copy, as one evaluation would report it, then averaged over the copies.
            over_images.append(here.std(1, ddof=1).mean() / apart.std(1, ddof=1).mean())
            monte_carlo.append(np.sqrt(here.var(0, ddof=1).mean() / apart.var(0, ddof=1).mean()))
        return over_images, monte_carlo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=18)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument(
        "--density", type=float, default=2.0, help="steps per unit of gamma of the likelihoods"
    )
    parser.add_argument("--strata", type=int, default=4, help="noise levels between neighbouring thresholds")
    parser.add_argument("--copies", type=int, default=4, help="draws per image for the Monte Carlo error")
    parser.add_argument("--repeats", type=int, default=2, help="timed runs, of which the fastest counts")
    args = parser.parse_args()

    parallel.use_all_cores()
    enable_compilation_cache()
    low, high = io.shipped("digits_vdm"), io.shipped("digits_edm")
    etas = thresholds.standard_etas(low, high)
    images = digits.load("test").images[: args.images]
    print(
        f"{len(images)} test digits, {args.samples} samples, {len(etas)} thresholds, {parallel.describe_devices()}"
    )

    sweeps = Sweeps(low, high, etas, images, args.samples, args.density)
    print(
        "largest differences between both ways: bpd {:.1e}, share of pixels {:.1e}".format(
            *sweeps.agreement()
        )
    )
    sweep = warm_seconds([sweeps.shared, sweeps.separate], args.repeats)
    print("sweep: shared {:.2f} s ({:.2f} s CPU), separate {:.2f} s ({:.2f} s CPU)".format(*sweep.ravel()))

    bounds = Bounds(low, high, etas, np.tile(images, (4, 1, 1, 1)), args.strata)
    draws = bounds.curves().answers().sum(1).tolist()
    bounds.singles(draws)
    bound = warm_seconds([bounds.curves, functools.partial(bounds.singles, draws)], 2 * args.repeats)
    print(
        "bound: one pass {:.2f} s ({:.2f} s CPU), two single experts {:.2f} s ({:.2f} s CPU)".format(
            *bound.ravel()
        )
    )

    errors, monte_carlo = Bounds(low, high, etas, images, args.strata).error_ratios(args.copies)
    print(
        "errors:",
        " ".join(f"{e:.3f}" for e in errors),
        "| Monte Carlo:",
        " ".join(f"{e:.3f}" for e in monte_carlo),
    )
    print(
        json.dumps(
            {
                "sweep_cost_ratio": round(sweep[0, 0] / sweep[1, 0], 4),
                "bound_cost_ratio": round(bound[0, 0] / bound[1, 0], 4),
                "sweep_cpu_ratio": round(sweep[0, 1] / sweep[1, 1], 4),
                "bound_cpu_ratio": round(bound[0, 1] / bound[1, 1], 4),
                "max_se_ratio": round(float(max(errors)), 4),
                "mean_mc_error_ratio": round(float(np.mean(monte_carlo)), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
