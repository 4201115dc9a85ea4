"""Reference statistics for FID: a mean and a covariance of Inception's features in an npz file."""

import json
import pathlib
import re
from typing import Any

import numpy as np

from checkpoints_convert import readers, registry
from checkpoints_convert.places import check_same, is_npz, no_new_folders, sha256
from checkpoints_convert.readers import tensors, zip_entries
from checkpoints_convert.readers.faults import Fault, shown
from jaxmerge import files

_NAMES = {"mu.npy", "sigma.npy", "source.npy"}
_LARGEST = 2**28  # bytes of one array; 2048 x 2048 float64 is 2**25
# NumPy's header of an array of floating point numbers, in the one form that NumPy writes.
_HEADER = re.compile(
    rb"\{'descr': '<(f[248])', 'fortran_order': (False|True), 'shape': \(([0-9]{1,9})(?:, ?([0-9]{1,9})|,)\), ?\} *\n"
)


def recognised(path: pathlib.Path) -> bool:
    """Whether a file is a zip archive with `mu.npy` in it; False for whatever cannot be read as one."""
    try:
        data = readers.mapped(path)
        return data[:2] == b"PK" and "mu.npy" in zip_entries.names(data)
    except Fault:
        return False


def read(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D, D], float64.

    Raises:
        ValueError: a damaged file, or arrays that are no mean and covariance.
    """
    try:
        entries = zip_entries.entries(readers.mapped(path))
        if not {"mu.npy", "sigma.npy"} <= set(entries) <= _NAMES:
            raise Fault(f"expected mu.npy and sigma.npy, got {shown(', '.join(sorted(entries)))}")
        mu, sigma = (_array(name, entries[f"{name}.npy"]) for name in ("mu", "sigma"))
        _check(mu, sigma)
    except Fault as fault:
        raise ValueError(
            f"cannot read {shown(str(path), 300)} as reference statistics: {fault.found}; {fault.advice}."
        ) from None
    return mu.astype(np.float64), sigma.astype(np.float64)


def _array(name: str, data: memoryview) -> np.ndarray:
    """An npy file of floating point numbers as a view of its bytes."""
    version, width = bytes(data[6:8]), 2 if bytes(data[6:7]) == b"\1" else 4
    first = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    header = _HEADER.fullmatch(bytes(data[8 + width : first])) if first <= min(len(data), 10_000) else None
    if bytes(data[:6]) != b"\x93NUMPY" or version not in (b"\1\0", b"\2\0", b"\3\0") or header is None:
        raise Fault(f"expected an array of floating point numbers as {name}")
    kind, fortran, *sizes = (part.decode() for part in header.groups() if part is not None)
    shape = tuple(map(int, sizes))
    if len(data) > _LARGEST:
        raise Fault(f"expected {name} of at most {_LARGEST} bytes, got {len(data)}")
    turned = fortran == "True"
    array = tensors.array(data[first:], np.dtype(f"<{kind}"), shape[::-1] if turned else shape)
    return array.T if turned else array


def _check(mu: np.ndarray, sigma: np.ndarray) -> None:
    if mu.ndim != 1 or not len(mu) or sigma.shape != 2 * mu.shape:
        raise Fault(
            f"expected a mean [D] and a covariance [D, D], got {list(mu.shape)} and {list(sigma.shape)}"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise Fault("expected finite numbers")
    largest = np.abs(sigma).max()
    with np.errstate(over="ignore"):
        skew = np.abs(sigma - sigma.T).max()
    if np.diag(sigma).min() < 0 or skew > 1e-6 * largest:
        raise Fault("expected a symmetric covariance with variances on its diagonal")


def write(path: pathlib.Path, mu: np.ndarray, sigma: np.ndarray, record: dict[str, Any]) -> None:
    """Writes `mu`, `sigma` and, as the text `source`, where they come from; whole or not at all."""
    files.write_npz(path, {"mu": mu, "sigma": sigma, "source": np.asarray(json.dumps(record))})


def convert(path: pathlib.Path, dest: pathlib.Path, entry: registry.Entry | None) -> dict[str, Any]:
    """Checks FID reference statistics and writes them to DEST, an npz file.

    Raises:
        ValueError: a damaged file, or a DEST that does not end in .npz, or that is something else already.
    """
    if dest.suffix != ".npz":
        raise ValueError(
            f"reference statistics for FID are written as a file, so DEST must end in .npz, got {dest}."
        )
    check_same(dest, lambda there: is_npz(there) and recognised(there), "reference statistics")
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
