"""EDM's augmentation (Karras et al. 2022, appendix F.2, Table 6), and the labels that tell the network of it.

Every operation is drawn for each image by itself: it is applied with a probability, and its labels are 0
where it is not. In this order:

    ==================  =====================================================================  ==============
    operation           what                                                                   labels
    ==================  =====================================================================  ==============
    mirror left-right   with 1/2; always drawn                                                 w
    mirror up-down      with 1/2 where applied                                                 w
    scale               2^(0.2 w), w ~ N(0, 1)                                                 w
    rotation            by w ~ U(-pi, pi), from rows' to columns' direction on the screen      cos w - 1, sin w
    anisotropy          2^(0.2 w) along an axis at the angle r, 2^(-0.2 w) across;             w cos r, w sin r
                        w ~ N(0, 1), r ~ U(-pi, pi) with 1/2, else 0
    translation         by (W w_x, H w_y) / 8, w ~ N(0, 1)                                     w_x, w_y
    ==================  =====================================================================  ==============

Mirror images are exact. The others compose into one affine map about the image's centre, which is carried
out once: the image, mirrored at its borders without end, is interpolated at twice its resolution, looked up
at twice the output's resolution, and filtered down (windowed sinc both times), so that neither enlarged nor
shrunk images alias. An image to which none of them applies is returned as it is.

At inference the labels are absent, which equals zeros.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

LABELS = 9
PROBABILITY = 0.12
# Standard deviations: of log2 of both kinds of scale, and of the translation in image sides.
SCALE_STD, TRANSLATE_STD = 0.2, 0.125
ROTATED_AXIS = 0.5
# The sinc's window, in pixels to each side.
LOBES = 4


class Drawn(NamedTuple):
    """What happens to each image; zeros mean nothing.

    Attributes:
        mirror_x, mirror_y: 0 or 1.
        scale: log2 of the scale over `SCALE_STD`.
        rotation: angle.
        stretch, axis: log2 of the anisotropy over `SCALE_STD`, and its axis' angle.
        shift_x, shift_y: translation over `TRANSLATE_STD` image sides, to the right and down.
    """

    mirror_x: Float[Array, " B"]
    mirror_y: Float[Array, " B"]
    scale: Float[Array, " B"]
    rotation: Float[Array, " B"]
    stretch: Float[Array, " B"]
    axis: Float[Array, " B"]
    shift_x: Float[Array, " B"]
    shift_y: Float[Array, " B"]


@jax.jit
def draw(keys: Key[Array, " B"], probability: float, mirror_probability: float = 1.0) -> Drawn:
    """Each image's operations, from its own key alone.

    Args:
        keys: one per image.
        probability: of every operation but the first.
        mirror_probability: of drawing whether to mirror left-right.
    """

    def one(key):
        chosen, values = jax.random.split(key)
        u = jax.random.uniform(chosen, (7,))
        names = jax.random.split(values, 8)
        coin = [jax.random.bernoulli(k).astype(jnp.float32) for k in names[:2]]
        angle = [jax.random.uniform(k, minval=-jnp.pi, maxval=jnp.pi) for k in names[2:4]]
        normal = [jax.random.normal(k) for k in names[4:]]
        on = (u < probability).astype(jnp.float32)
        return Drawn(
            mirror_x=coin[0] * (u[0] < mirror_probability),
            mirror_y=coin[1] * on[1],
            scale=normal[0] * on[2],
            rotation=angle[0] * on[3],
            stretch=normal[1] * on[4],
            axis=angle[1] * on[4] * (u[6] < ROTATED_AXIS),
            shift_x=normal[2] * on[5],
            shift_y=normal[3] * on[5],
        )

    return jax.vmap(one)(keys)


def labels(drawn: Drawn) -> Float[Array, "B 9"]:
    """The nine labels, in the order of the table above."""
    return jnp.stack(
        [
            drawn.mirror_x,
            drawn.mirror_y,
            drawn.scale,
            jnp.cos(drawn.rotation) - 1,
            jnp.sin(drawn.rotation),
            drawn.stretch * jnp.cos(drawn.axis),
            drawn.stretch * jnp.sin(drawn.axis),
            drawn.shift_x,
            drawn.shift_y,
        ],
        axis=-1,
    )


def is_moved(drawn: Drawn) -> Bool[Array, " B"]:
    """Whether an operation beyond mirroring applies."""
    return jnp.any(
        jnp.stack([v != 0 for v in (drawn.scale, drawn.rotation, drawn.stretch, *drawn[6:])]), axis=0
    )


def _turn(angle):
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([c, -s], -1), jnp.stack([s, c], -1)], -2)


def sources(drawn: Drawn, height: int, width: int) -> tuple[Float[Array, "B 2 2"], Float[Array, "B 2"]]:
    """The map from a place in the result to the place in the image it shows, about the centre, (x, y) in pixels.

    Returns:
        (A, b): the result shows at p what the image has at ``A (p - b)``.
    """
    stretch = 2.0 ** (SCALE_STD * drawn.stretch)
    shrunk = jnp.stack([1 / stretch, stretch], -1)[:, None, :] * jnp.eye(2)
    # T (stretch) R (scale), undone from the left.
    inverse = _turn(-drawn.rotation) @ _turn(drawn.axis) @ shrunk @ _turn(-drawn.axis)
    inverse = inverse * (2.0 ** (-SCALE_STD * drawn.scale))[:, None, None]
    sides = jnp.array([width, height], jnp.float32)
    return inverse, TRANSLATE_STD * sides * jnp.stack([drawn.shift_x, drawn.shift_y], -1)


def _window(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < LOBES, np.sinc(x) * np.sinc(x / LOBES), 0.0)


@functools.cache
def _up(size: int) -> np.ndarray:
    """[2 size - 1, size]: an image mirrored at its borders, interpolated at every half pixel."""
    taps = np.arange(-LOBES, size + LOBES)
    weights = _window(np.arange(2 * size - 1)[:, None] / 2 - taps)
    weights /= weights.sum(1, keepdims=True)
    folded = np.abs((taps + size - 1) % max(2 * (size - 1), 1) - (size - 1))
    matrix = np.zeros((2 * size - 1, size))
    np.add.at(matrix.T, folded, weights.T)
    return matrix.astype(np.float32)


@functools.cache
def _down(size: int) -> np.ndarray:
    """[size, 2 size - 1 + 4 LOBES]: the half-band filter at every other place of a margin-wide oversampled row."""
    places = (np.arange(2 * size - 1 + 4 * LOBES) - 2 * LOBES) / 2
    weights = _window(places - np.arange(size)[:, None])
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def warp(
    images: Float[Array, "B H W C"], inverse: Float[Array, "B 2 2"], offset: Float[Array, "B 2"]
) -> Float[Array, "B H W C"]:
    """Images resampled by the affine map of `sources`, with borders that mirror and without aliasing."""
    height, width = images.shape[1:3]
    fine = jnp.einsum("uh,bhwc,vw->bcuv", _up(height), images, _up(width))
    centre = jnp.array([(width - 1) / 2, (height - 1) / 2], jnp.float32)

    def places(size):
        return (jnp.arange(2 * size - 1 + 4 * LOBES, dtype=jnp.float32) - 2 * LOBES) / 2

    grid = jnp.stack(jnp.meshgrid(places(width), places(height)), -1) - centre

    def look_up(channels, inverse, offset):
        x, y = jnp.moveaxis((grid - offset) @ inverse.T + centre, -1, 0)
        at = (2 * y, 2 * x)
        return jax.vmap(lambda c: jax.scipy.ndimage.map_coordinates(c, at, order=1, mode="mirror"))(channels)

    seen = jax.vmap(look_up)(fine, inverse, offset)
    return jnp.einsum("hu,bcuv,wv->bhwc", _down(height), seen, _down(width))


@jax.jit
def apply(images: Float[Array, "B H W C"], drawn: Drawn) -> Float[Array, "B H W C"]:
    """Images after the operations that were drawn for them."""

    def where(condition, a, b):
        return jnp.where(condition[:, None, None, None], a, b)

    images = where(drawn.mirror_x > 0, images[:, :, ::-1], images)
    images = where(drawn.mirror_y > 0, images[:, ::-1], images)
    return where(is_moved(drawn), warp(images, *sources(drawn, *images.shape[1:3])), images)


@jax.jit
def augment(
    images: Float[Array, "B H W C"],
    key: Key[Array, ""],
    probability: float = PROBABILITY,
    places: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B H W C"], Float[Array, "B 9"]]:
    """Augmented images and their labels; the operations of image i follow from ``fold_in(key, places[i])``.

    Args:
        images: in any scale; smooth resampling may overshoot their range.
        key: of the batch.
        probability: of every operation but mirroring, which is always drawn.
        places: the images' places in the batch, 0, 1, ... by default.
    """
    places = jnp.arange(len(images)) if places is None else places
    drawn = draw(jax.vmap(lambda i: jax.random.fold_in(key, i))(places), probability)
    return apply(images, drawn), labels(drawn)
