"""Reference statistics for FID: a mean and a covariance of Inception's features in an npz file."""

import json
import pathlib
import zipfile
from typing import Any

import numpy as np

from checkpoints_convert import registry
from checkpoints_convert.places import no_new_folders, sha256
from jaxmerge import files

_LARGEST = 2**28  # bytes of one unpacked array; 2048 x 2048 float64 is 2**25
_NAMES = {"mu.npy", "sigma.npy", "source.npy"}


def recognised(path: pathlib.Path) -> bool:
    """Whether a file is a zip archive with `mu.npy` in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "mu.npy" in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def read(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D], float64.

    Raises:
        ValueError: a damaged file, or arrays that are no mean and covariance.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if not {"mu.npy", "sigma.npy"} <= set(sizes) <= _NAMES or max(sizes.values()) > _LARGEST:
                raise ValueError(f"it holds {', '.join(sorted(sizes))[:80]}")
        with np.load(path, allow_pickle=False) as stored:
            mu, sigma = (np.asarray(stored[name]) for name in ("mu", "sigma"))
        _check(mu, sigma)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(
            f"{path.name} must hold a mean mu [D] and a covariance sigma [D, D] of features, but {reason}; download "
            "it again."
        ) from error
    return mu.astype(np.float64), sigma.astype(np.float64)


def _check(mu: np.ndarray, sigma: np.ndarray) -> None:
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f" or mu.ndim != 1 or sigma.shape != 2 * mu.shape:
        raise ValueError(f"they are {mu.dtype}{list(mu.shape)} and {sigma.dtype}{list(sigma.shape)}")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError("they are not finite")
    largest = np.abs(sigma).max(initial=0)
    if np.diag(sigma).min(initial=0) < 0 or np.abs(sigma - sigma.T).max(initial=0) > 1e-6 * largest:
        raise ValueError("sigma is not symmetric with variances on its diagonal")


def write(path: pathlib.Path, mu: np.ndarray, sigma: np.ndarray, record: dict[str, Any]) -> None:
    """Writes `mu`, `sigma` and, as the text `source`, where they come from; whole or not at all."""
    files.write_npz(path, {"mu": mu, "sigma": sigma, "source": np.asarray(json.dumps(record))})


def convert(path: pathlib.Path, dest: pathlib.Path, entry: registry.Entry | None) -> dict[str, Any]:
    """Checks FID reference statistics and writes them to DEST, an npz file.

    Raises:
        ValueError: a damaged file, or a DEST that does not end in .npz.
    """
    if dest.suffix != ".npz":
        raise ValueError(
            f"reference statistics for FID are written as a file, so DEST must end in .npz, got {dest}."
        )
    mu, sigma = read(path)
    record = {
        "data_set": entry.data_set if entry else "not known",
        "licence": entry.licence if entry else registry.UNKNOWN,
        "features": len(mu),
        "source": {"name": entry.name if entry else None, "file": path.name, "sha256": sha256(path)},
    }
    with no_new_folders(dest):
        write(dest, mu, sigma, record)
    return record
