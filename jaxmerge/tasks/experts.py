"""Experts that a config names but that are not there yet: how to make them, or making them."""

import pathlib
import shlex
import subprocess
import sys

from ml_collections import ConfigDict

from jaxmerge.experts import io

_COMMAND = ("-m", "checkpoints_convert")


def missing(asked: ConfigDict) -> list[tuple[str, str]]:
    """(path, source) of every expert that is neither shipped nor on disk; the source may be empty."""
    # Something that stands there and is no expert is for the reader to refuse, which knows why.
    pairs = ((asked.low, asked.low_source), (asked.high, asked.high_source))
    return [
        (path, source)
        for path, source in pairs
        if path not in io.shipped_names() and not pathlib.Path(path).exists()
    ]


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
