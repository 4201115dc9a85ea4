"""LPIPS, PSNR, SSIM and reconstructions against independent computations."""

import jax
import numpy as np
import pytest
import skimage.metrics

from jaxmerge import checkpoint
from jaxmerge.merge import Switch
from jaxmerge.metrics import lpips, pixel, reconstruction
from jaxmerge.noise import PixelScale
from tests import toys

EIGHT_BITS = PixelScale(256)
KEY = jax.random.key(3)


def pictures(seed: int, shape: tuple[int, ...], levels: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, levels, size=shape, dtype=np.uint8)


def smooth(seed: int, count: int, size: int, channels: int = 3) -> np.ndarray:
    waves = np.random.default_rng(seed).normal(size=(count, 3, 3, channels))
    basis = np.cos(np.pi * np.arange(3)[:, None] * (np.arange(size) + 0.5) / size)
    return np.uint8(255 / (1 + np.exp(-np.einsum("nijc,ih,jw->nhwc", waves, basis, basis))))


# The layers of torchvision's files: (number in the file, channels, kernel, stride, padding), "pool" between.
PUBLIC = {
    "alex": [(0, 64, 11, 4, 2), "pool", (3, 192, 5, 1, 2), "pool", (6, 384, 3, 1, 1), (8, 256, 3, 1, 1), (10, 256, 3, 1, 1)],
    "vgg": [
        *((0, 64, 3, 1, 1), (2, 64, 3, 1, 1), "pool", (5, 128, 3, 1, 1), (7, 128, 3, 1, 1), "pool"),
        *((10, 256, 3, 1, 1), (12, 256, 3, 1, 1), (14, 256, 3, 1, 1), "pool"),
        *((17, 512, 3, 1, 1), (19, 512, 3, 1, 1), (21, 512, 3, 1, 1), "pool"),
        *((24, 512, 3, 1, 1), (26, 512, 3, 1, 1), (28, 512, 3, 1, 1)),
    ],
}  # fmt: skip
COMPARED = {"alex": (0, 3, 6, 8, 10), "vgg": (2, 7, 14, 21, 28)}
POOL = {"alex": 3, "vgg": 2}


def public_arrays(kind: str) -> dict[str, np.ndarray]:
    """Random arrays with the names and shapes of the public files."""
    rng, arrays, channels = np.random.default_rng(0), {"classifier.1.weight": np.zeros((2, 2), np.float32)}, 3
    for layer in PUBLIC[kind]:
        if layer == "pool":
            continue
        number, width, kernel, *_ = layer
        scale = np.sqrt(2 / (channels * kernel**2))
        arrays[f"features.{number}.weight"] = rng.normal(size=(width, channels, kernel, kernel)) * scale
        arrays[f"features.{number}.bias"] = rng.normal(size=width) * 0.1
        if number in COMPARED[kind]:
            k = COMPARED[kind].index(number)
            arrays[f"lin{k}.model.1.weight"] = rng.uniform(size=(1, width, 1, 1)) / width
        channels = width
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """[N, C, h, w, size, size] of images [N, C, H, W]."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]


def numpy_layers(kind: str, arrays, images: np.ndarray) -> list[np.ndarray]:
    """The compared layers in float64 and channels-first, as the paper's network is written down."""
    x = images.astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1
    shift, spread = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x, found = (x - shift[:, None, None]) / spread[:, None, None], []
    for layer in PUBLIC[kind]:
        if layer == "pool":
            x = windows(x, POOL[kind], 2).max(axis=(-1, -2))
            continue
        number, _, kernel, stride, padding = layer
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        weight = arrays[f"features.{number}.weight"].astype(np.float64)
        x = np.tensordot(windows(x, kernel, stride), weight, axes=((1, 4, 5), (1, 2, 3))).transpose(
            0, 3, 1, 2
        )
        x = np.maximum(x + arrays[f"features.{number}.bias"][:, None, None], 0)
        if number in COMPARED[kind]:
            found.append(x)
    return found


def numpy_lpips(kind: str, arrays, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = np.zeros(len(a))
    for k, (f, g) in enumerate(
        zip(numpy_layers(kind, arrays, a), numpy_layers(kind, arrays, b), strict=True)
    ):
        f, g = (h / (np.linalg.norm(h, axis=1, keepdims=True) + 1e-10) for h in (f, g))
        weight = arrays[f"lin{k}.model.1.weight"].astype(np.float64)
        total += ((f - g) ** 2 * weight).sum(axis=1).mean(axis=(1, 2))
    return total


@pytest.fixture(scope="module")
def alex():
    return lpips.from_arrays("alex", public_arrays("alex"))


@pytest.mark.parametrize(("kind", "size"), [("alex", 64), ("alex", 31), ("vgg", 24)])
def test_lpips_agrees_with_numpy_on_random_weights(kind, size):
    arrays = public_arrays(kind)
    a, b = smooth(0, 3, size), np.concatenate([smooth(1, 2, size), pictures(2, (1, size, size, 3))])
    want = numpy_lpips(kind, arrays, a, b)
    found = lpips.distances(lpips.from_arrays(kind, arrays), a, b, scale=EIGHT_BITS, batch_size=2)
    assert want.min() > 1e-3
    np.testing.assert_allclose(found, want, rtol=2e-5)


def test_lpips_is_zero_of_equal_images_symmetric_and_grows_with_noise(alex):
    a = smooth(0, 4, 33)
    rough = np.random.default_rng(0).normal(size=a.shape)
    little, much = (np.uint8(np.clip(a + s * rough, 0, 255)) for s in (10, 60))

    def measure(x, y):
        return lpips.distances(alex, x, y, scale=EIGHT_BITS)

    assert (measure(a, a) < 1e-9).all()
    np.testing.assert_allclose(measure(a, much), measure(much, a), rtol=1e-6)
    assert (measure(a, little) < measure(a, much)).all() and (measure(a, little) > 0).all()


def test_lpips_takes_grey_images_as_three_equal_channels_and_any_levels(alex):
    a, b = pictures(0, (2, 33, 35, 1), 18), pictures(1, (2, 33, 35, 1), 18)
    grey = lpips.distances(alex, a, b, scale=PixelScale(18))
    wide = [np.repeat(images * np.uint8(15), 3, axis=-1) for images in (a, b)]  # 17 * 15 = 255
    np.testing.assert_allclose(grey, lpips.distances(alex, *wide, scale=EIGHT_BITS), rtol=1e-4)


def test_lpips_is_read_from_its_checkpoint(alex, tmp_path):
    record = {"network": {"kind": "lpips", "backbone": "alex"}}
    checkpoint.save(tmp_path / "alex", lpips.parameters(alex), record)
    checkpoint.save(tmp_path / "other", {"w": np.zeros(2)}, {"network": {"kind": "inception"}})
    a, b = smooth(0, 2, 32), smooth(1, 2, 32)
    loaded = lpips.load(tmp_path / "alex")
    np.testing.assert_array_equal(
        lpips.distances(loaded, a, b, scale=EIGHT_BITS), lpips.distances(alex, a, b, scale=EIGHT_BITS)
    )
    assert reconstruction.perceptual(loaded).weights == reconstruction.perceptual(alex).weights
    with pytest.raises(ValueError, match="not of LPIPS"):
        lpips.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (
            "lin2.model.1.weight",
            None,
            r"needs lin2.model.1.weight of the shape \[1, 384, 1, 1\], it is missing",
        ),
        ("features.3.weight", np.zeros((192, 64, 3, 3)), r"got \[192, 64, 3, 3\]"),
        ("features.0.bias", np.full(64, np.nan), "not finite"),
        ("lin0.model.1.weight", np.full((1, 64, 1, 1), -1.0), "must not be negative"),
    ],
)
def test_wrong_lpips_arrays_are_refused(name, array, message):
    arrays = public_arrays("alex")
    del arrays[name]
    with pytest.raises(ValueError, match=message):
        lpips.from_arrays("alex", arrays if array is None else arrays | {name: array})


def test_images_that_lpips_cannot_take_are_refused(alex):
    a = pictures(0, (2, 32, 32, 3))
    for x, y, message in (
        (a[:, :30], a[:, :30], "at least 31 x 31"),
        (a, a[:1], "as many originals"),
        (a[..., :2], a[..., :2], "grey or RGB"),
        (a, a[:, :31], r"must have the shape \[B, 32, 32, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            lpips.distances(alex, x, y, scale=EIGHT_BITS)
    with pytest.raises(ValueError, match="'alex' or 'vgg', got 'squeeze'"):
        lpips.build("squeeze")


def numpy_ssim(a: np.ndarray, b: np.ndarray, window: int) -> float:
    """SSIM of images [H, W, C] in 0 ... 1, window by window in float64."""
    taps = np.exp(-0.5 * ((np.arange(window) - window // 2) / 1.5) ** 2)
    weight = np.outer(taps, taps) / taps.sum() ** 2
    found = []
    for channel in range(a.shape[-1]):
        x, y = (np.lib.stride_tricks.sliding_window_view(i[..., channel], (window, window)) for i in (a, b))
        m, n = (x * weight).sum((-1, -2)), (y * weight).sum((-1, -2))
        v, w, c = ((p * weight).sum((-1, -2)) for p in (x * x, y * y, x * y))
        v, w, c = v - m * m, w - n * n, c - m * n
        found.append((2 * m * n + 1e-4) * (2 * c + 9e-4) / ((m**2 + n**2 + 1e-4) * (v + w + 9e-4)))
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("shape", "levels", "window"),
    [((5, 32, 32, 3), 256, 11), ((5, 19, 23, 1), 256, 11), ((5, 8, 8, 1), 17, 7)],
)
def test_psnr_and_ssim_agree_with_independent_computations(shape, levels, window):
    a = pictures(0, shape, levels)
    b = np.uint8(np.clip(a + np.random.default_rng(1).normal(size=shape) * levels / 20, 0, levels - 1))
    found = pixel.pixel_scores(a, b, PixelScale(levels), window=window, batch_size=2)
    usual = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1)
    for i in range(len(a)):
        psnr = skimage.metrics.peak_signal_noise_ratio(a[i], b[i], data_range=levels - 1)
        np.testing.assert_allclose(found.psnr[i], psnr, rtol=1e-5)
        scaled = (a[i] / (levels - 1), b[i] / (levels - 1))
        np.testing.assert_allclose(found.ssim[i], numpy_ssim(*scaled, window), rtol=2e-4)
        if window == 11:  # scikit-image's only Gaussian window
            want = skimage.metrics.structural_similarity(*scaled, data_range=1, **usual)
            np.testing.assert_allclose(found.ssim[i], want, rtol=2e-4)


def test_equal_images_have_infinite_psnr_and_ssim_one():
    a = pictures(0, (2, 12, 12, 3))
    found = pixel.pixel_scores(a, a, EIGHT_BITS)
    assert np.isinf(found.psnr).all() and not found.mse.any()
    scores = reconstruction.score(a, a, gamma=0.0, scale=EIGHT_BITS)
    assert np.isinf([scores.psnr, scores.psnr_pooled]).all() and scores.exact == 2
    np.testing.assert_allclose(found.ssim, 1, rtol=1e-5)


def test_one_level_of_error_has_its_closed_form():
    a = np.full((1, 8, 8, 1), 3, np.uint8)
    found = pixel.pixel_scores(a, a + np.uint8(1), PixelScale(17), window=7)
    np.testing.assert_allclose(found.psnr, 20 * np.log10(16), rtol=1e-5)
    c1, x, y = 0.01**2, 3 / 16, 4 / 16
    np.testing.assert_allclose(found.ssim, (2 * x * y + c1) / (x**2 + y**2 + c1), rtol=1e-4)


def test_images_that_cannot_be_compared_are_refused():
    a = pictures(0, (2, 8, 8, 1), 17)
    for y, arguments, message in (
        (a, {}, "the images' 8 pixels, got 11"),
        (a, {"window": 6}, "must be odd"),
        (a[:1], {"window": 7}, "every image needs its original"),
        (a[:, :7], {"window": 7}, "must have the shape"),
    ):
        with pytest.raises(ValueError, match=message):
            pixel.pixel_scores(a, y, PixelScale(17), **arguments)


@pytest.fixture(scope="module")
def scene():
    """An exact expert on 2x2 images, its images' grey levels, and their indices."""
    expert, scale = toys.gaussian(), PixelScale(17)
    x = jax.jit(type(expert).sample, static_argnums=2)(expert, jax.random.key(0), 64)
    return expert, np.asarray(scale.nearest(x)), scale, np.arange(100, 164)


def test_reconstruction_is_the_posterior_mean_of_the_noisy_image(scene):
    expert, images, scale, index = scene
    gamma = 0.5
    found = reconstruction.reconstruct(
        expert, images, gamma, key=KEY, index=index, scale=scale, batch_size=10
    )
    x = (2 * images.astype(np.float64) + 1) / 17 - 1
    alpha, sigma = 1 / np.sqrt(1 + np.exp(gamma)), 1 / np.sqrt(1 + np.exp(-gamma))
    eps = np.stack([jax.random.normal(jax.random.fold_in(KEY, i), (2, 2, 1)) for i in index])
    z = alpha * x + sigma * eps
    mean, covariance = np.random.default_rng(0).normal(size=(2, 2, 1)) * 0.3, toys.covariance(1)
    gain = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(4))
    x_hat = mean + ((z - alpha * mean).reshape(64, 4) @ gain.T).reshape(z.shape)
    level = (x_hat + 1) * 17 / 2
    sure = np.abs(level - np.rint(level)) > 1e-3  # on the edge of two levels rounding decides
    np.testing.assert_array_equal(found[sure], np.clip(np.floor(level), 0, 16)[sure])
    assert sure.mean() > 0.98 and found.dtype == np.uint8


def test_reconstruction_does_not_depend_on_batches_or_neighbours(scene):
    expert, images, scale, index = scene
    whole = reconstruction.reconstruct(expert, images, 1.0, key=KEY, index=index, scale=scale)
    some = reconstruction.reconstruct(
        expert, images[7:12], 1.0, key=KEY, index=index[7:12], scale=scale, batch_size=2
    )
    np.testing.assert_array_equal(whole[7:12], some)
    other = reconstruction.reconstruct(expert, images, 1.0, key=KEY, index=index + 1, scale=scale)
    assert (other != whole).any()


def test_more_noise_leaves_worse_reconstructions(scene):
    expert, images, scale, index = scene
    scores = []
    for gamma in (-7.5, -2.0, 2.0):
        done = reconstruction.reconstruct(expert, images, gamma, key=KEY, index=index, scale=scale)
        # 2x2 images are too small for SSIM: tiled, which changes no PSNR.
        big, done = (np.tile(i, (1, 4, 4, 1)) for i in (images, done))
        scores.append(reconstruction.score(big, done, gamma=gamma, scale=scale, window=7))
    lowest, middle, highest = scores
    assert 50 < lowest.exact <= 64 and np.isinf(lowest.psnr) and np.isnan(lowest.psnr_se)
    assert middle.psnr_pooled < lowest.psnr_pooled
    assert highest.psnr_pooled < middle.psnr_pooled and highest.ssim < middle.ssim < lowest.ssim
    assert highest.lpips is None and highest.count == 64 and highest.gamma == 2.0
    for part in ("gamma 2.0000", "64 images", "grey", "levels / 16", "7x7", "standard error"):
        assert part in highest.definition


def test_scores_are_means_with_their_errors(alex):
    a = smooth(0, 5, 32)
    b = np.uint8(np.clip(a + np.random.default_rng(0).normal(size=a.shape) * 9, 0, 255))
    found = reconstruction.score(a, b, gamma=0.0, scale=EIGHT_BITS, lpips=reconstruction.perceptual(alex))
    each = pixel.pixel_scores(a, b, EIGHT_BITS)
    distances = lpips.distances(alex, a, b, scale=EIGHT_BITS)
    for mean, error, values in (
        (found.psnr, found.psnr_se, each.psnr),
        (found.ssim, found.ssim_se, each.ssim),
        (found.lpips, found.lpips_se, distances),
    ):
        np.testing.assert_allclose((mean, error), (values.mean(), values.std(ddof=1) / np.sqrt(5)), rtol=1e-4)
    np.testing.assert_allclose(
        found.psnr_pooled, -10 * np.log10(np.mean(((a / 255.0) - (b / 255.0)) ** 2)), rtol=1e-5
    )
    assert found.exact == 0 and "LPIPS 0.1 with AlexNet" in found.definition and "RGB" in found.definition


def test_a_switch_reconstructs_as_the_expert_that_answers_at_that_noise():
    low, high = toys.Recorder(0.5, gamma_range=toys.LOW), toys.Recorder(0.9, gamma_range=toys.HIGH)
    merged = Switch(low, high, 0.5)
    images, index, scale = pictures(0, (6, 8, 8, 1), 17), np.arange(6), PixelScale(17)
    experts = {"low": low, "high": high, "merged": merged}
    for gamma, same in ((-6.0, "low"), (4.5, "high")):
        done = {
            name: reconstruction.reconstruct(e, images, gamma, key=KEY, index=index, scale=scale)
            for name, e in experts.items()
        }
        np.testing.assert_array_equal(done["merged"], done[same])
        scores = {
            name: reconstruction.score(images, i, gamma=gamma, scale=scale, window=7)
            for name, i in done.items()
        }
        assert scores["merged"] == scores[same]
    assert reconstruction.compare(experts, images, 4.5, key=KEY, index=index, scale=scale, window=7) == scores


def test_reconstructions_that_cannot_be_are_refused(scene):
    expert, images, scale, index = scene
    ask = reconstruction.reconstruct
    with pytest.raises(ValueError, match="the reconstruction needs gamma from 20"):
        ask(expert, images, 20.0, key=KEY, index=index, scale=scale)
    with pytest.raises(ValueError, match="pass scale="):
        ask(expert, images, 0.0, key=KEY, index=index)
    with pytest.raises(ValueError, match="64 images and 3 indices"):
        ask(expert, images, 0.0, key=KEY, index=index[:3], scale=scale)
    with pytest.raises(ValueError, match="takes no labels"):
        ask(expert, images, 0.0, key=KEY, index=index, scale=scale, labels=1)
