"""Experts that a config names but that are not there yet: how to make them, or making them."""

import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxmerge import checkpoint
from jaxmerge.experts import io
from jaxmerge.experts.base import Expert
from jaxmerge.metrics.weights import weights_hash
from jaxmerge.run import Run

_COMMAND = ("-m", "checkpoints_convert")
# Networks at full size with the weights that their training starts from: "untrained:vdm_cifar10".
UNTRAINED = "untrained:"
_CIFAR10 = {"levels": 256, "shape": (32, 32, 3)}
_FULL_SIZE = {
    "vdm_cifar10": {
        "kind": "vdm",
        "architecture": {"channels": 3, "width": 128, "depth": 32, "fourier": (5, 6)},
        "bounds": (-13.3, 5.0),
        "native_range": (-13.3, 5.0),
        **_CIFAR10,
    },
    "edm_cifar10": {
        "kind": "edm",
        "architecture": {"resolution": 32, "channels": 3, "augment_dim": 9},
        "sigma_range": (0.002, 80.0),
        **_CIFAR10,
    },
}
# What a report quotes of an expert's metadata.
RECORDED = ("data", "data_set", "source", "weights", "training_step", "best_step", "licence")


def load_expert(name: str) -> Expert:
    """A shipped expert by name, an untrained one, or any by the path of its checkpoint.

    Raises:
        ValueError: no such expert, or a damaged one.
    """
    if name.startswith(UNTRAINED):
        return io.build(_FULL_SIZE[name.removeprefix(UNTRAINED)], seed=0)
    return io.shipped(name) if name in io.shipped_names() else io.load_expert(name)


def record_of(name: str) -> dict[str, Any]:
    """What is known of an expert's origin, as far as its metadata says."""
    if name.startswith(UNTRAINED):
        return {"checkpoint": name, "data": "mock32", "weights": "untrained"}
    path = io.shipped_path(name) if name in io.shipped_names() else name
    known = checkpoint.load_metadata(path)
    return {"checkpoint": name} | {k: known[k] for k in RECORDED if k in known}


def pin(run: Run, loaded: Mapping[str, Expert], records: dict[str, dict[str, Any]]) -> None:
    """Adds the hash of every expert's weights to its record, and keeps to those that a run began with.

    Args:
        run: has the hashes as a stage.
        loaded: experts by their names in `records`.
        records: see `record_of`.

    Raises:
        ValueError: an expert has other weights than when the run began.
    """
    found = {name: weights_hash(expert) for name, expert in loaded.items()}
    began = run.stage("experts", lambda: found)
    changed = [name for name in found if began.get(name) != found[name]]
    if changed:
        raise ValueError(
            f"the weights of {' and '.join(changed)} are not those that this run began with; choose another folder with "
            "--workdir, or put the earlier ones back."
        )
    for name, value in found.items():
        records[name]["weights_sha256"] = value


def missing(asked: ConfigDict) -> list[tuple[str, str]]:
    """(path, source) of every expert that is neither shipped nor on disk; the source may be empty."""
    # Something that stands there and is no expert is for the reader to refuse, which knows why.
    pairs = ((asked.low, asked.low_source), (asked.high, asked.high_source))
    return [(path, source) for path, source in pairs if not is_here(path)]


def is_here(path: str) -> bool:
    """Whether an expert is shipped, or something is at the path of its checkpoint."""
    untrained = path.startswith(UNTRAINED) and path.removeprefix(UNTRAINED) in _FULL_SIZE
    return untrained or path in io.shipped_names() or pathlib.Path(path).exists()


def provide(asked: ConfigDict) -> None:
    """Sees to it that both experts are there.

    Args:
        asked: the config's section `experts`.

    Raises:
        ValueError: an expert is missing, and it has no source, or is not to be fetched, or cannot be.
    """
    absent = missing(asked)
    for path, source in absent:
        if not source:
            raise ValueError(
                f"there is no expert at {path}, and the config names no public checkpoint for it; train it, or give "
                "the path of a checkpoint."
            )
    if absent and not asked.fetch:
        commands = " and ".join(shlex.join(["python", *_COMMAND, source, path]) for path, source in absent)
        raise ValueError(
            f"there is no expert at {' and '.join(path for path, _ in absent)}; make it with {commands}, or let the "
            "run do it with --config.experts.fetch=True."
        )
    for path, source in absent:
        done = subprocess.run([sys.executable, *_COMMAND, source, path], check=False)
        if done.returncode:
            raise ValueError(f"the expert {path} could not be made from {source}; the line above says why.")
