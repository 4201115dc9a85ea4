"""Class labels in the one form that networks take: one-hot (or soft) rows [B, K], or [K] for all images."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Labels = int | Int[Array, " B"] | Float[Array, " K"] | Float[Array, "B K"]


def one_hot(labels: Labels, classes: int) -> Float[Array, "*B K"]:
    """Labels as float32 rows of `classes` entries.

    Whole numbers are classes: one for all images, or one per image [B]. Rows [B, K] of any kind, and one
    row [K] of floats or bools, are taken as they are.

    Args:
        labels: see above.
        classes: K.

    Returns:
        [K] for one label, [B, K] for one per image.

    Raises:
        ValueError: rows of another width, a class outside 0 ... K - 1 (where concrete), or no labels at all.
    """
    array = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    whole = jnp.issubdtype(array.dtype, jnp.integer)
    if whole and array.ndim < 2:
        outside = [] if isinstance(array, jax.core.Tracer) else np.asarray(array)
        outside = [int(c) for c in np.ravel(outside) if not 0 <= c < classes]
        if outside:
            raise ValueError(f"classes must be 0 to {classes - 1}, got {outside[0]}.")
        return jax.nn.one_hot(array, classes, dtype=jnp.float32)
    numeric = whole or jnp.issubdtype(array.dtype, jnp.floating) or array.dtype == bool
    if not numeric or array.ndim not in (1, 2) or array.shape[-1] != classes:
        raise ValueError(
            f"labels must be a class from 0 to {classes - 1}, classes [B], or one-hot rows [B, {classes}] or "
            f"[{classes}], got {array.dtype} of the shape {list(array.shape)}."
        )
    return jnp.asarray(array, jnp.float32)


def rows_of(labels: Labels, classes: int, count: int) -> Float[Array, "N K"]:
    """`one_hot` for `count` images: a single label is repeated, as many labels as images pass.

    Raises:
        ValueError: as `one_hot`, or labels for another number of images.
    """
    rows = one_hot(labels, classes)
    if rows.ndim == 2 and len(rows) != count:
        raise ValueError(
            f"there are labels of {len(rows)} images, got {count} images; give one label for all, or one per image."
        )
    return jnp.broadcast_to(rows, (count, classes))
