"""How much faster a second start is: compiled programs are kept in a cache folder of the user.

    python -m benchmarks.startup

Runs `python main.py --config configs/digits_merge.py` at a tiny size twice, each time in a fresh workdir,
with a fresh compilation cache that both share. Nothing but the cache can make the second one faster.

The last line is one JSON object:

    first_s    wall seconds of the first start, which compiles everything
    second_s   of the second
    ratio      second_s / first_s
    cpu_ratio  the same of CPU seconds, which other work on the machine does not change
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Every stage runs, on as little as it takes.
TINY = {
    "likelihood.n_images": 8,
    "likelihood.tolerance": 0.2,
    "likelihood.image_tolerance": 0.9,
    "bound.n_images": 8,
    "bound.repeats": 1,
    "merge.etas": 0.3,
    "merge.candidate_step": 0.2,
    "sampling.n_samples": 40,
    "sampling.n_samples_other": 0,
    "sampling.seeds": 1,
    "sampling.sampler": "heun",
    "sampling.heun_steps": 4,
}


def start(workdir: Path, cache: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one run.

    Raises:
        RuntimeError: the run failed; shows what it wrote.
    """
    options = [f"--config.{key}={value}" for key, value in TINY.items()]
    command = [
        sys.executable,
        "main.py",
        "--config",
        "configs/digits_merge.py",
        "--workdir",
        str(workdir),
        *options,
    ]
    begin, before = time.perf_counter(), cpu_seconds()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - begin
    if done.returncode != 0:
        raise RuntimeError(f"the run ended with code {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return seconds, cpu_seconds() - before


def cpu_seconds() -> float:
    """CPU seconds of all child processes so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        first, first_cpu = start(place / "first", place / "cache")
        programs = sum(1 for _ in (place / "cache").iterdir())
        print(f"first start: {first:.1f} s, {first_cpu:.1f} s CPU, {programs} files in the cache")
        second, second_cpu = start(place / "second", place / "cache")
        print(f"second start: {second:.1f} s, {second_cpu:.1f} s CPU")
    print(
        json.dumps(
            {
                "first_s": round(first, 2),
                "second_s": round(second, 2),
                "ratio": round(second / first, 4),
                "cpu_ratio": round(second_cpu / first_cpu, 4),
            }
        )
    )


if __name__ == "__main__":
    main()
