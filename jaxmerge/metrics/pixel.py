"""PSNR and SSIM of images against their originals, by dm-pix.

    PSNR = -10 log10 mean (a - b)^2,      SSIM: Wang et al. 2004, Eq. 13, averaged over windows,

both of grey levels divided by V - 1, so in 0 ... 1, in the images' own colour space (RGB, not luma: SSIM is
the mean of the three channels'). SSIM's windows are Gaussian, 11x11 of standard deviation 1.5, biased variances,
inside the image only (no padding); K1 = 0.01, K2 = 0.03. Images below 11x11 need a smaller window, which
is another definition.
"""

from typing import NamedTuple

import dm_pix
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jaxmerge import parallel
from jaxmerge.noise import PixelScale

WINDOW, WINDOW_STD = 11, 1.5


class PixelScores(NamedTuple):
    """Per image, [N] each: PSNR in dB (infinite where images are equal), SSIM, mean squared error in 0 ... 1."""

    psnr: Float[np.ndarray, " N"]
    ssim: Float[np.ndarray, " N"]
    mse: Float[np.ndarray, " N"]


def _batch(scale: PixelScale, window: int, a, b):
    # The difference is taken of whole numbers, so that equal images have no error: of scaled ones, a compiler
    # that fuses the scaling leaves a rounding error, and 157 dB instead of infinitely many.
    difference = (a.astype(jnp.float32) - b.astype(jnp.float32)) / (scale.levels - 1)
    nothing = jnp.zeros_like(difference)
    a, b = (images.astype(jnp.float32) / (scale.levels - 1) for images in (a, b))
    ssim = dm_pix.ssim(a, b, max_val=1.0, filter_size=window, filter_sigma=WINDOW_STD)
    return PixelScores(dm_pix.psnr(difference, nothing), ssim, dm_pix.mse(difference, nothing))


def pixel_scores(
    a: UInt8[np.ndarray, "N H W C"],
    b: UInt8[np.ndarray, "N H W C"],
    scale: PixelScale,
    *,
    window: int = WINDOW,
    batch_size: int = 250,
) -> PixelScores:
    """PSNR and SSIM of pairs of images, sharded over all local devices.

    Args:
        a, b: grey levels.
        scale: their number of levels.
        window: side of SSIM's Gaussian window, odd; 11 is the usual one.
        batch_size: pairs per device and call.

    Raises:
        ValueError: images of different shapes, another number of levels, or smaller than the window.
    """
    a = scale.check(a)
    b = scale.check(b, a.shape[1:])
    if len(a) != len(b) or not len(a):
        raise ValueError(f"every image needs its original, got {len(a)} and {len(b)} images.")
    if window < 3 or window % 2 == 0 or window > min(a.shape[1:3]):
        raise ValueError(
            f"the window of SSIM must be odd, from 3 to the images' {min(a.shape[1:3])} pixels, got {window}; 11 is "
            "the usual one, and small images need a smaller one."
        )
    return parallel.map_batches(_batch, (scale, window), (), (a, b), batch_size=batch_size)


def definition(scale: PixelScale, channels: int, window: int = WINDOW) -> str:
    """What the numbers of `pixel_scores` are."""
    colour = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    return (
        f"{colour}, uint8 levels / {scale.levels - 1} (range 0 to 1), no resizing; PSNR over all pixels and channels "
        f"of an image; SSIM with a Gaussian window {window}x{window} of std {WINDOW_STD}, K 0.01 and 0.03, no padding, "
        "mean over channels; float32 (dm-pix)"
    )
