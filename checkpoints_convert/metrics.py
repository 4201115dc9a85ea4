"""The networks of metrics, which are no experts: what they are built from, and their self-checks on arrival."""

from typing import Any

import numpy as np
from flax import nnx

from checkpoints_convert import arrival
from jaxmerge.metrics import inception, lpips
from jaxmerge.noise import PixelScale

KINDS = ("inception", "lpips")
_ADVICE = "so its weights are wrong; get the file again, or convert with --no-check to keep it as it is."
# Grey levels of noise that are added to an image for LPIPS, and what its distance to itself must stay below.
_NOISE = (0, 6, 18, 54)
_ZERO = 1e-6


def build(description: dict[str, Any]) -> nnx.Module:
    """The abstract network of a description of one of `KINDS`."""
    return inception.build() if description["kind"] == "inception" else lpips.build(description["backbone"])


def check(description: dict[str, Any], net: nnx.Module) -> str:
    """The self-check of a network on the device: what it found, in a few words.

    Raises:
        ValueError: features or distances that no network with proper weights has.
    """
    return _check_inception(net) if description["kind"] == "inception" else _check_lpips(net)


def _check_inception(net: inception.Inception) -> str:
    images = np.rint(255 * arrival.smooth_images((32, 32, 3), 2)).astype(np.uint8)
    pooled = np.asarray(inception.features(net, images, batch_size=2).pool)
    if not np.isfinite(pooled).all() or not 1e-3 < pooled.std() < 1e3:
        raise ValueError(
            f"Inception's features have the standard deviation {pooled.std():.3g} where about 0.3 is expected, {_ADVICE}"
        )
    return "passed; features are finite and of the usual scale"


def _check_lpips(net: lpips.LPIPS) -> str:
    """Distances of an image to itself and to copies with more and more noise: zero, and then rising."""
    images = np.rint(255 * np.repeat(arrival.smooth_images((64, 64, 3), 1), len(_NOISE), axis=0))
    rough = np.random.default_rng(1).normal(size=images.shape[1:])
    noise = np.asarray(_NOISE)[:, None, None, None] * rough
    images, noisy = (np.clip(np.rint(each), 0, 255).astype(np.uint8) for each in (images, images + noise))
    found = lpips.distances(net, images, noisy, scale=PixelScale(256), batch_size=len(images))
    shown = ", ".join(f"{distance:.2g}" for distance in found)
    if not np.isfinite(found).all() or abs(found[0]) > _ZERO or not (np.diff(found) > _ZERO).all():
        raise ValueError(
            f"LPIPS of an image and copies with more and more noise must begin at 0 and rise, got {shown}, {_ADVICE}"
        )
    return f"passed; the distance of an image to itself and to ever noisier copies is {shown}"
