"""EDM's augmentation: exact where it can be, elsewhere against closed forms and SciPy's splines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxmerge.data import augment

SIZE = 32
CENTRE = (SIZE - 1) / 2


def drawn(count=3, **changes):
    """Nothing but what is asked, for every image."""
    values = {name: jnp.zeros(count) for name in augment.Drawn._fields}
    return augment.Drawn(**(values | {k: jnp.full(count, float(v)) for k, v in changes.items()}))


def waves(x, y):
    """A smooth function that mirrors itself at an image's borders: all of the plane is known in closed form."""
    step = np.pi / (SIZE - 1)
    return np.cos(3 * step * x) * np.cos(4 * step * y) + 0.5 * np.cos(step * x) + 0.3 * np.cos(2 * step * y)


def picture(function=waves):
    """One image [3, SIZE, SIZE, 1], three times."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    return jnp.asarray(np.tile(function(x, y)[None, :, :, None], (3, 1, 1, 1)), jnp.float32)


def noise_images(count=3):
    return jax.random.normal(jax.random.key(1), (count, SIZE, SIZE, 1))


def test_no_probability_means_the_identity_and_zero_labels():
    keys = jax.random.split(jax.random.key(0), 3)
    nothing = augment.draw(keys, 0.0, mirror_probability=0.0)
    images = noise_images()
    np.testing.assert_array_equal(augment.apply(images, nothing), images)
    np.testing.assert_array_equal(augment.labels(nothing), np.zeros((3, augment.LABELS)))


@pytest.mark.parametrize("name,axis,label", [("mirror_x", 2, 0), ("mirror_y", 1, 1)])
def test_mirroring_is_exact(name, axis, label):
    images = noise_images()
    operations = drawn(**{name: 1})
    np.testing.assert_array_equal(augment.apply(images, operations), np.flip(images, axis))
    np.testing.assert_array_equal(augment.labels(operations), np.tile(np.eye(9)[label], (3, 1)))


def rotated(w):
    c, s = np.cos(w), np.sin(w)
    return np.array([[c, -s], [s, c]])


# Forward maps of the plane about the centre (x to the right, y down), written out by hand.
CASES = {
    "scale up": ({"scale": 1.3}, 2 ** (0.2 * 1.3) * np.eye(2), (0, 0)),
    "scale down": ({"scale": -2.0}, 2 ** (-0.4) * np.eye(2), (0, 0)),
    "rotation": ({"rotation": 0.7}, rotated(0.7), (0, 0)),
    "stretch": ({"stretch": 1.5}, np.diag([2**0.3, 2**-0.3]), (0, 0)),
    "stretch along an axis": (
        {"stretch": 1.5, "axis": 0.6},
        rotated(0.6) @ np.diag([2**0.3, 2**-0.3]) @ rotated(-0.6),
        (0, 0),
    ),
    "translation": ({"shift_x": 0.4, "shift_y": -0.7}, np.eye(2), (0.4 * 4, -0.7 * 4)),
    "all": (
        {"scale": 0.5, "rotation": -0.4, "stretch": 1.0, "axis": 0.3, "shift_x": 0.3, "shift_y": 0.2},
        rotated(0.3) @ np.diag([2**0.2, 2**-0.2]) @ rotated(-0.3) @ rotated(-0.4) * 2**0.1,
        (0.3 * 4, 0.2 * 4),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_operation_moves_a_smooth_image_as_its_formula_says_and_borders_mirror(case):
    changes, forward, shift = CASES[case]
    back = np.linalg.inv(forward)

    def moved(x, y):
        dx, dy = x - CENTRE - shift[0], y - CENTRE - shift[1]
        return waves(CENTRE + back[0, 0] * dx + back[0, 1] * dy, CENTRE + back[1, 0] * dx + back[1, 1] * dy)

    # What is left is the bilinear look-up between half pixels.
    np.testing.assert_allclose(augment.apply(picture(), drawn(**changes)), picture(moved), atol=0.012)


@pytest.mark.parametrize("case", ["scale up", "rotation", "translation", "all"])
def test_the_resampling_agrees_with_scipys_splines(case):
    changes, forward, shift = CASES[case]
    inverse = np.linalg.inv(forward)[::-1, ::-1]  # SciPy counts rows first
    offset = CENTRE - inverse @ (CENTRE + np.array(shift[::-1]))
    # Smoothed noise: structure of about five pixels.
    image = np.asarray(noise_images()[0, :, :, 0], np.float64)
    image = scipy.ndimage.gaussian_filter(image, 1.6, mode="mirror")
    want = scipy.ndimage.affine_transform(image, inverse, offset, order=5, mode="mirror")
    got = augment.apply(jnp.asarray(image, jnp.float32)[None, :, :, None].repeat(3, 0), drawn(**changes))
    inner = np.s_[0, 3:-3, 3:-3, 0]
    np.testing.assert_allclose(np.asarray(got)[inner], want[3:-3, 3:-3], atol=0.06 * np.std(image))


def test_shrinking_does_not_alias():
    """A grating beyond the result's resolution turns grey instead of into a coarser grating."""
    period = 2.3

    def grating(x, y):
        return np.cos(2 * np.pi * x / period)

    shrunk = np.asarray(augment.apply(picture(grating), drawn(scale=-3.0)))  # to 0.66 of its size
    assert np.std(shrunk) < 0.12 < 0.6 < np.std(picture(grating))


def test_labels_are_the_drawn_numbers_in_the_documented_order():
    one = drawn(
        mirror_x=1, mirror_y=1, scale=0.3, rotation=0.5, stretch=-0.7, axis=0.2, shift_x=0.1, shift_y=-0.4
    )
    cos, sin = np.cos, np.sin
    want = [1, 1, 0.3, cos(0.5) - 1, sin(0.5), -0.7 * cos(0.2), -0.7 * sin(0.2), 0.1, -0.4]
    np.testing.assert_allclose(augment.labels(one)[0], want, rtol=1e-6)


def test_operations_come_as_often_and_as_wide_as_they_should():
    count = 20_000
    found = jax.device_get(augment.draw(jax.random.split(jax.random.key(2), count), 0.12))
    share = {name: np.mean(np.asarray(v) != 0) for name, v in found._asdict().items()}
    error = 4 * 0.5 / np.sqrt(count)
    want = {"mirror_x": 0.5, "mirror_y": 0.06, "axis": 0.06}
    assert share == {k: pytest.approx(want.get(k, 0.12), abs=error) for k in share}
    applied = {name: v[v != 0] for name, v in found._asdict().items()}
    for name in ("scale", "stretch", "shift_x", "shift_y"):
        assert np.std(applied[name]) == pytest.approx(1.0, abs=0.07), name
    assert np.std(applied["rotation"]) == pytest.approx(np.pi / np.sqrt(3), abs=0.1)
    # One decision for both directions of a shift; otherwise independent.
    np.testing.assert_array_equal(found.shift_x != 0, found.shift_y != 0)
    assert np.mean((found.scale != 0) & (found.rotation != 0)) == pytest.approx(0.12**2, abs=0.005)


def test_an_image_is_augmented_by_its_place_in_the_batch_alone():
    images, key = noise_images(6), jax.random.key(5)
    whole, numbers = augment.augment(images, key, 0.5)
    part, few = augment.augment(images[:3], key, 0.5)
    np.testing.assert_allclose(whole[:3], part, atol=1e-5)
    np.testing.assert_array_equal(numbers[:3], few)
    assert numbers.shape == (6, 9) and not np.array_equal(whole, images)


def test_images_of_any_size_and_shape_keep_it():
    images = jax.random.normal(jax.random.key(3), (2, 8, 12, 1))
    assert augment.augment(images, jax.random.key(0), 1.0)[0].shape == images.shape
    flat = jnp.full((2, 8, 12, 1), 0.3)
    np.testing.assert_allclose(augment.augment(flat, jax.random.key(0), 1.0)[0], flat, rtol=1e-5)
