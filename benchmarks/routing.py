"""What choosing the top 2 of K experts saves: FLOPs of the passes that ran, and wall time, against the dense mixture.

    python -m benchmarks.routing [--batch 64] [--steps 150] [--heun 6] [--repeats 3] [--counts 4 8]

Experts: the shipped digits VDM, K times; their weights differ only by adapters that a short warm-up on K class
groups trained (`--warm` steps). Two routings: "trained", a gate trained with the load penalty (`--steps` steps)
and run by its two largest weights; "uniform", weights drawn for each image at each step. Both run the same
program: Heun's sampler on one device from the same noise. FLOPs are those of one pass of an expert and of the
gate, as XLA counts them, times the passes that a tally counted while the sampler ran. Times are medians of
`repeats` runs that take turns, so that load is shared; CPU times stand beside wall times, since on a machine
with other work they tell more.

The last line is one JSON object: for every K "flops_trained", "flops_uniform", "wall_trained", "wall_uniform",
"cpu_trained", "cpu_uniform" (shares of dense), and the trained gate's "passes_per_call" of every expert; "load",
the machine's load (runnable processes, mean of a minute) before anything ran.
"""

import argparse
import json
import os
import tempfile
import time

import jax
import numpy as np
from flax import nnx

from jaxmerge import parallel, sampling
from jaxmerge.app import enable_compilation_cache
from jaxmerge.data import load, slices
from jaxmerge.experts import io
from jaxmerge.experts.adapters import share_trunk
from jaxmerge.gate.cost import Tally, costs
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.network import FixedGate, Gate, RandomGate
from jaxmerge.training import gate_recipe


def prepared(count: int, warm: int, steps: int, width: int) -> Gated:
    """K specialists of class groups as K whole networks, under a gate that was trained for a while."""
    data, validation = load("digits", "train"), load("digits", "validation")
    chosen = slices.fit("classes", count, data)
    common = dict(batch_size=64, eval_every=10**6, save_every=10**6, repeats=2, log=lambda line: None)
    vdm = io.shipped("digits_vdm")
    start = Gated(share_trunk(vdm, count, rank=4), FixedGate(jax.numpy.zeros(count)))
    members = dict(members=chosen.members(data), validation_members=chosen.members(validation))
    with tempfile.TemporaryDirectory() as folder:
        warmed = gate_recipe.train_gated(
            start,
            data,
            validation,
            workdir=f"{folder}/experts",
            steps=warm,
            learning_rate=2e-3,
            parts="adapters",
            warm_fraction=1 - 0.25 / warm,
            **members,
            **common,
        ).last
        # Whole networks, as an inference server would hold them.
        experts = tuple(warmed.experts)
        gate = Gate(
            count,
            gamma_range=vdm.gamma_range,
            shape=vdm.image_shape,
            width=width,
            hidden=2 * width,
            rngs=nnx.Rngs(0),
        )
        return gate_recipe.train_gated(
            Gated(experts, gate),
            data,
            validation,
            workdir=f"{folder}/gate",
            steps=steps,
            learning_rate=5e-3,
            ema_decay=0.98,
            **common,
        ).last


def samplers(models: dict[str, Gated], batch: int, heun: int):
    """One compiled sampler per model, on one device."""
    settings, index = sampling.Settings("heun", heun), jax.numpy.arange(batch)

    @jax.jit
    def draw(model):
        return sampling.sample(model, index, key=jax.random.key(0), settings=settings)

    return {name: (lambda m=model: jax.block_until_ready(draw(m))) for name, model in models.items()}


def share_of_flops(sparse: Gated, batch: int, heun: int) -> tuple[float, Tally]:
    """FLOPs of a sampling run of a sparse mixture over the dense one's, and the passes that ran."""
    tally = Tally(len(sparse.experts))
    samplers({"counted": sparse.but(tally=tally)}, batch, heun)["counted"]()
    return costs(sparse, batch).saving(tally), tally


def seconds(runs, repeats: int) -> dict[str, np.ndarray]:
    """Median (wall, CPU) seconds of each, in turns, after one run that compiles."""
    for run in runs.values():
        run()
    taken = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: np.median(values, axis=0) for name, values in taken.items()}


def compare(count: int, args) -> dict[str, float | list[float]]:
    """Top 2 of K against dense, on trained and on uniform routing."""
    dense = prepared(count, args.warm, args.steps, args.width)
    trained = dense.but(top_k=2, capacity_factor=args.capacity)
    sparse = {"trained": trained, "uniform": trained.but(gate=RandomGate(jax.random.key(1), count))}
    found: dict[str, float | list[float]] = {}
    for name, model in sparse.items():
        share, tally = share_of_flops(model, args.batch, args.heun)
        found[f"flops_{name}"] = round(share, 4)
        if name == "trained":
            found["passes_per_call"] = np.round(tally.passes / tally.batches, 3).tolist()
    taken = seconds(samplers({"dense": dense} | sparse, args.batch, args.heun), args.repeats)
    for name in sparse:
        wall, cpu = (taken[name] / taken["dense"]).round(4).tolist()
        found |= {f"wall_{name}": wall, f"cpu_{name}": cpu}
    found |= {
        "dense_seconds": round(float(taken["dense"][0]), 3),
        "slots_per_pass": trained.capacity(args.batch),
    }
    print(f"K = {count}: {found}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--counts", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--warm", type=int, default=60, help="steps of the specialists' warm-up")
    parser.add_argument("--steps", type=int, default=150, help="steps of the gate's training")
    parser.add_argument("--width", type=int, default=16, help="of the gate")
    parser.add_argument(
        "--capacity", type=float, default=0.25, help="slots per pass, in shares of uniform routing"
    )
    parser.add_argument("--heun", type=int, default=6, help="steps of the sampler")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    parallel.use_all_cores()
    enable_compilation_cache()
    found = {f"K{count}": compare(count, args) for count in args.counts}
    print(json.dumps({"batch": args.batch, "load": load, **found}))


if __name__ == "__main__":
    main()
