"""What `test_full_size.py` runs in processes of their own, each with its figures as JSON on the last line.

python -m tests.full_size convert ARGUMENTS...      the command line of checkpoints_convert
python -m tests.full_size merge VDM EDM             two experts merged, one image drawn and scored
"""

import json
import pathlib
import re
import sys
import time


def peak() -> int:
    """Most bytes that this process has had in memory; the parent's do not count, as they do in `rusage`."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def convert(*arguments: str) -> dict:
    from checkpoints_convert.command import main

    assert main(list(arguments)) == 0
    return {}


def merge(low: str, high: str) -> dict:
    import jax
    import numpy as np

    from jaxmerge import likelihood, sampling
    from jaxmerge import probability_flow as flow
    from jaxmerge.experts import io
    from jaxmerge.merge import Switch

    jax.config.update("jax_default_matmul_precision", "highest")
    start = time.perf_counter()
    merged = Switch(io.load_expert(low), io.load_expert(high), eta=0.4)
    loaded = time.perf_counter()
    drawn = sampling.Settings(sampler="heun", steps=18)
    images, nfe = sampling.generate(merged, 1, key=jax.random.key(0), settings=drawn, batch_size=1)
    sampled = time.perf_counter()
    settings = likelihood.Settings(control=flow.FixedGrid(0.5))
    scored = likelihood.evaluate(merged, images, key=jax.random.key(1), settings=settings, batch_size=1)
    done = time.perf_counter()
    return {
        "load_s": loaded - start,
        "sample_s": sampled - loaded,
        "score_s": done - sampled,
        "nfe_sampling": float(np.mean(nfe)),
        "bpd": float(scored.bpd[0]),
        "ok": bool(np.all(scored.ok)),
        "levels": len(np.unique(images)),
    }


if __name__ == "__main__":
    begin = time.perf_counter()
    found = {"convert": convert, "merge": merge}[sys.argv[1]](*sys.argv[2:])
    cost = {"s": time.perf_counter() - begin, "cpu_s": time.process_time(), "peak_GB": peak() / 1e9}
    print(json.dumps(found | cost))
