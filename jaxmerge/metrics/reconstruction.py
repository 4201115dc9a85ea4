"""How well an expert removes noise of one level: PSNR, SSIM and LPIPS of denoised images against the originals.

    z = alpha(gamma) x + sigma(gamma) eps,    x_hat = (z - sigma eps_hat(z, gamma)) / alpha,

one call of the network, then the nearest grey level. eps is drawn per image from (key, index), so that every
expert denoises the same noise and differences between experts are paired. At one gamma a switch is one of its
experts: a merge differs from them only as gamma goes over the threshold.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt8

from jaxmerge import noise, parallel
from jaxmerge.experts.base import Expert, check_range
from jaxmerge.experts.labels import Labels, rows_of
from jaxmerge.metrics import lpips as lpips_metric
from jaxmerge.metrics import pixel
from jaxmerge.metrics.weights import weights_hash
from jaxmerge.noise import PixelScale


class Perceptual(NamedTuple):
    """LPIPS to be measured: the network and the hash of its weights; make it with `perceptual`."""

    net: lpips_metric.LPIPS
    weights: str


def perceptual(net: lpips_metric.LPIPS) -> Perceptual:
    """LPIPS with the name of its weights."""
    return Perceptual(net, weights_hash(lpips_metric.parameters(net)))


class Scores(NamedTuple):
    """Means over images, each with its standard error over images.

    Attributes:
        psnr, psnr_se: dB; mean of the images' own, infinite (error NaN) where an image is exact.
        psnr_pooled: dB of the mean squared error of all images together.
        exact: number of images that are equal to their originals.
        ssim, ssim_se: at most 1.
        lpips, lpips_se: at least 0; None where it was not asked for.
        count: number of images.
        gamma: noise level that they were denoised from.
        definition: of all numbers.
    """

    psnr: float
    psnr_se: float
    psnr_pooled: float
    exact: int
    ssim: float
    ssim_se: float
    lpips: float | None
    lpips_se: float | None
    count: int
    gamma: float
    definition: str


def _batch(scale, expert, key, gamma, images, index, labels=None):
    expert = expert if labels is None else expert.with_labels(labels)
    x = scale.encode(images)
    eps = noise.image_normal(key, index, x.shape[1:])
    with jax.default_matmul_precision("highest"):
        x_hat = expert.denoise(noise.alpha(gamma) * x + noise.sigma(gamma) * eps, gamma)
    return scale.nearest(x_hat)


def reconstruct(
    expert: Expert,
    images: UInt8[np.ndarray, "N H W C"],
    gamma: float,
    *,
    key: Key[Array, ""],
    index: Int[np.ndarray, " N"],
    scale: PixelScale | None = None,
    labels: Labels | None = None,
    batch_size: int = 250,
    advance: Callable[[int], None] = lambda n: None,
) -> UInt8[np.ndarray, "N H W C"]:
    """Images after noise of level gamma and one denoising call, as grey levels.

    Args:
        expert: any expert, merges included.
        images: grey levels of the originals.
        gamma: -log SNR, inside the expert's range.
        key: the noise of image i comes from (key, index[i]).
        index: identity of each image, its number in the whole data set.
        scale: grey levels, where the expert does not know them.
        labels: of a conditional expert, one per image or one for all.
        batch_size: images per device and call.
        advance: called with the number of images done.

    Raises:
        ValueError: a noise level outside the expert's range, images that do not fit it, or no scale known.
    """
    scale = scale or expert.pixel_scale
    if scale is None:
        raise ValueError("this expert does not know its grey levels; pass scale=PixelScale(levels).")
    check_range(expert, gamma, gamma, what="the reconstruction")
    images = scale.check(images, expert.image_shape)
    if len(index) != len(images):
        raise ValueError(f"every image needs its index, got {len(images)} images and {len(index)} indices.")
    arrays = (images, np.asarray(index, np.int32))
    if labels is not None:
        if expert.classes is None:
            expert.with_labels(labels)  # refuses, naming the expert
        arrays += (np.asarray(rows_of(labels, expert.classes, len(images))),)
    replicated = (expert, key, jnp.float32(gamma))
    return parallel.map_batches(_batch, (scale,), replicated, arrays, batch_size=batch_size, advance=advance)


def score(
    originals: UInt8[np.ndarray, "N H W C"],
    images: UInt8[np.ndarray, "N H W C"],
    *,
    gamma: float,
    scale: PixelScale,
    window: int = pixel.WINDOW,
    lpips: Perceptual | None = None,
    batch_size: int = 50,
) -> Scores:
    """PSNR, SSIM and LPIPS of reconstructions against their originals.

    Args:
        originals, images: grey levels, in the same order.
        gamma: noise level that the images were denoised from, for the record.
        scale: grey levels.
        window: of SSIM (see `pixel.pixel_scores`).
        lpips: from `perceptual`, or None to leave LPIPS out.
        batch_size: pairs per device and call; no number depends on it.

    Raises:
        ValueError: images of different shapes, or too small for the window or for LPIPS.
    """
    found = pixel.pixel_scores(originals, images, scale, window=window, batch_size=batch_size)
    psnr, ssim = _mean_and_se(found.psnr), _mean_and_se(found.ssim)
    pooled = found.mse.astype(np.float64).mean()
    words = [
        f"one denoising call from gamma {gamma:.4f} (noise per image), nearest grey level, against the originals",
        f"{len(images)} images, means over images +- standard error over images, batch {batch_size} per device",
        pixel.definition(scale, np.shape(images)[-1], window),
    ]
    distance = (None, None)
    if lpips is not None:
        distances = lpips_metric.distances(lpips.net, originals, images, scale=scale, batch_size=batch_size)
        distance = _mean_and_se(distances)
        backbone = lpips_metric.BACKBONES[lpips.net.kind].name
        words.append(f"LPIPS 0.1 with {backbone}, range -1 to 1, no resizing, weights {lpips.weights[:12]}")
    return Scores(
        *psnr,
        float(-10 * np.log10(pooled)) if pooled > 0 else float("inf"),
        int(np.sum(found.mse == 0)),
        *ssim,
        *distance,
        len(images),
        float(gamma),
        "; ".join(words),
    )


def _mean_and_se(values: np.ndarray) -> tuple[float, float]:
    values = np.asarray(values, np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return float(values.mean()), float("nan")
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def compare(
    experts: Mapping[str, Expert],
    images: UInt8[np.ndarray, "N H W C"],
    gamma: float,
    *,
    key: Key[Array, ""],
    index: Int[np.ndarray, " N"],
    scale: PixelScale,
    window: int = pixel.WINDOW,
    lpips: Perceptual | None = None,
    batch_size: int = 50,
) -> dict[str, Scores]:
    """`score` of every expert's `reconstruct` at one noise level, all from the same noise.

    Args:
        experts: by name, merges among them; all made for `gamma`.
        images, gamma, key, index, scale, window, lpips, batch_size: as in `reconstruct` and `score`.
    """
    found = {}
    for name, expert in experts.items():
        done = reconstruct(expert, images, gamma, key=key, index=index, scale=scale, batch_size=batch_size)
        found[name] = score(
            images, done, gamma=gamma, scale=scale, window=window, lpips=lpips, batch_size=batch_size
        )
    return found
