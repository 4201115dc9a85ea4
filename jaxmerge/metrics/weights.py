"""The identity of a network's weights, which a number that they were used for has to name."""

import hashlib

import jax
import numpy as np
from jaxtyping import PyTree


def weights_hash(params: PyTree) -> str:
    """SHA-256 of all arrays with their names, dtypes and shapes; it does not depend on the file they came from.

    Args:
        params: a pytree of arrays, usually nested dicts by layer name.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    named = {
        jax.tree_util.keystr(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    for name in sorted(named):
        array = np.asarray(named[name])
        digest.update(f"{name} {array.dtype.str} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
