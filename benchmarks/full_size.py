"""Time, memory and network calls per image at full network size, beside the networks' bare calls.

    python -m benchmarks.full_size [--images 64] [--batch 8] [--steps 18] [--density 0.5] [--calls 4] [--features 64]

The networks are the CIFAR-10 VDM (30.6 million parameters) and EDM (55.7 million) with the weights that their
training starts from, and FID's Inception: time does not depend on the weights. For each expert alone and for
their merge at eta = 0.4 it samples by Heun and scores images on a fixed grid. A bare call is the same network
on the same batch in a loop that does nothing else: `eps_hat` for samples, `eps_hat` with a tangent for
likelihoods. Both are compiled before the clock starts.

The last line is one JSON object; every entry of "rows" has

    what, model         "sampling", "likelihood" or "features"; "VDM", "EDM", "merged" or "Inception"
    s_per_image         wall seconds per image, all local devices together
    nfe                 network calls per image
    s_per_bare_call     wall seconds per image of a bare call (not for the merge, which has two networks)
    overhead            s_per_image / (nfe x s_per_bare_call) - 1

and "host_peak_GB", "device_peak_GB", "device", "images", "batch" stand beside them.
"""

import argparse
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge import likelihood, parallel, sampling
from jaxmerge import probability_flow as flow
from jaxmerge.app import enable_compilation_cache
from jaxmerge.data import mock
from jaxmerge.merge import Switch
from jaxmerge.metrics import cost, inception
from jaxmerge.tasks.experts import load_expert

GAMMA = 0.0


def calls(count, expert, z):
    """`count` calls one after the other; each waits for the one before it."""
    return jax.lax.fori_loop(0, count, lambda _, y: expert.eps_hat(y, GAMMA), z)


def calls_with_tangent(count, expert, z):
    """The same, each with the tangent that a likelihood's trace needs."""

    def one(_, state):
        y, probe = state
        with jax.default_matmul_precision("highest"):
            return jax.jvp(lambda x: expert.eps_hat(x, GAMMA), (y,), (probe,))

    # Both are returned: a tangent that nobody asks for would not be computed.
    return jax.lax.fori_loop(0, count, one, (z, jnp.ones_like(z)))


def seconds(work, images: int, few: int) -> float:
    """Wall seconds of ``work(images)`` per image, after ``work(few)`` has compiled everything."""
    work(few)
    begin = time.perf_counter()
    work(images)
    return (time.perf_counter() - begin) / images


def one_batch(images: int, batch: int) -> int:
    """Images of one call of the program that `parallel.map_batches` runs on so many: it makes its batches equal."""
    devices = parallel.device_count()
    rounds = -(-images // (batch * devices))
    return min(-(-images // (rounds * devices)) * devices, images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="images per device and call")
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument(
        "--density", type=float, default=0.5, help="steps of the likelihood per unit of gamma"
    )
    parser.add_argument("--calls", type=int, default=4, help="bare calls in one loop")
    parser.add_argument(
        "--features", type=int, default=64, help="images whose Inception features are measured"
    )
    args = parser.parse_args()
    parallel.use_all_cores()
    enable_compilation_cache()
    vdm, edm = load_expert("untrained:vdm_cifar10"), load_expert("untrained:edm_cifar10")
    z = np.random.default_rng(0).normal(size=(args.images, 32, 32, 3)).astype(np.float32)
    images = np.resize(mock.load("train").images, z.shape)
    key, rows = jax.random.key(0), []
    settings = likelihood.Settings(control=flow.FixedGrid(args.density))
    heun = sampling.Settings(sampler="heun", steps=args.steps)
    few, few_features = (one_batch(count, args.batch) for count in (args.images, args.features))
    nfe = {}

    def bare(function, expert) -> float:
        def work(count):
            parallel.map_batches(function, (args.calls,), (expert,), (z[:count],), batch_size=args.batch)

        return seconds(work, args.images, few) / args.calls

    def draw(expert, count):
        drawn = sampling.generate(expert, count, key=key, settings=heun, batch_size=args.batch)
        nfe["sampling"] = float(drawn[1].mean())

    def score(expert, count):
        found = likelihood.evaluate(expert, images[:count], key=key, settings=settings, batch_size=args.batch)
        nfe["likelihood"] = float(found.nfe.mean())

    def add(what, model, per_image, calls, per_call=None):
        row = {"what": what, "model": model, "s_per_image": per_image, "nfe": calls}
        if per_call is not None:
            row |= {"s_per_bare_call": per_call, "overhead": per_image / (calls * per_call) - 1}
        rows.append(row)
        print({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}, flush=True)

    for name, expert in {"VDM": vdm, "EDM": edm, "merged": Switch(vdm, edm, 0.4)}.items():
        for what, work, function in (("sampling", draw, calls), ("likelihood", score, calls_with_tangent)):
            took = seconds(functools.partial(work, expert), args.images, few)
            add(what, name, took, nfe[what], None if name == "merged" else bare(function, expert))
    net = inception.build(seed=0)

    def features(count):
        shown = np.resize(images, (count, *images.shape[1:]))
        inception.features(net, shown, batch_size=args.batch)

    took = seconds(features, args.features, few_features)
    add("features", "Inception", took, 1.0)
    peak = cost.memory()
    print(
        json.dumps(
            {
                "rows": rows,
                "host_peak_GB": peak.host_peak / 1e9,
                "device_peak_GB": None if peak.device_peak is None else peak.device_peak / 1e9,
                "device": parallel.describe_devices(),
                "images": args.images,
                "batch": args.batch,
            }
        )
    )


if __name__ == "__main__":
    main()
