"""The self-check of a converted network: fixed noise on fixed images at five noise levels.

Each level gives the squared error of the denoised image, e = mean |x - x_hat|^2, beside that of the best
denoiser that knows nothing of images, the linear one,

    e_linear = s^2 sigma_edm^2 / (s^2 + sigma_edm^2),    s^2 = mean x^2.

A trained network is far below it at medium noise, its error falls with the noise, and its predicted
noise has the scale of noise (about 1). Fresh weights are at it or above; a network that is read as another
kind than it is is far above. Colour networks, which have seen photographs, are asked about smooth images;
grey ones (digits) about images that they draw themselves, since strokes on an empty ground have nothing
in common with smooth shades.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxmerge.experts.base import Expert

# Positions of the five levels in the native range; the inner ones decide.
POSITIONS = (0.04, 0.27, 0.5, 0.73, 0.96)
INNER = slice(1, 4)
# Numbers that every level's mean is taken over, where `MAX_IMAGES` allows.
PIXELS = 3000
MAX_IMAGES = 8
# Steps in which a grey network draws the images that it is asked about.
STEPS = 12
# A network is called trained where its error is below this share of the linear denoiser's (the inner levels'
# geometric mean), and another reading of the file better where it has less than `BETTER` times the error.
TRAINED, BETTER = 0.8, 0.85
# Smallest and largest root mean square of predicted noise that pass without a warning.
SCALE = (0.3, 3.0)

Reading = tuple[tuple[str, str], ...]
AS_IT_IS: Reading = ()


class Level(NamedTuple):
    """One noise level: gamma, root mean square of the predicted noise, errors of network and linear denoiser."""

    gamma: float
    scale: float
    error: float
    linear: float


class Arrival(NamedTuple):
    """The five levels, lowest noise first, and what a user should know."""

    levels: tuple[Level, ...]
    warnings: tuple[str, ...]

    @property
    def score(self) -> float:
        """The network's error in units of the linear denoiser's, over the inner levels."""
        return score(self.levels)

    def summary(self) -> str:
        """One line: the errors and whether they are those of a trained network."""
        errors = ", ".join(f"{level.error:.2g}" for level in self.levels)
        gammas = ", ".join(f"{level.gamma:.1f}" for level in self.levels)
        verdict = "has warnings" if self.warnings else "passed"
        return f"{verdict}; finite, denoising errors {errors} at gamma {gammas}"


def smooth_images(shape: tuple[int, int, int], count: int, *, seed: int = 0) -> np.ndarray:
    """Smooth random images in 0 ... 1, [count, H, W, C]: a few cosine waves, much the same in all channels."""
    h, w, c = shape
    draw = np.random.default_rng(seed)
    rows, columns = (np.cos(np.pi * np.arange(3)[:, None] * (np.arange(n) + 0.5) / n) for n in (h, w))
    grey = draw.normal(size=(count, 3, 3, 1)) + 0.2 * draw.normal(size=(count, 3, 3, c))
    grey /= 1.0 + np.add.outer(np.arange(3), np.arange(3))[None, :, :, None]
    images = np.einsum("nijc,ih,jw->nhwc", grey, rows, columns)
    return 1 / (1 + np.exp(-1.5 * images))


def drawn_images(expert: Expert, count: int) -> np.ndarray:
    """Images in 0 ... 1 that a network draws from fixed noise in `STEPS` deterministic steps."""
    low, high = expert.gamma_range
    gammas = np.linspace(high, low, STEPS + 1)
    z = np.random.default_rng(2).normal(size=(count, *expert.image_shape)).astype(np.float32)
    for gamma, after in itertools.pairwise(gammas):
        (eps_hat,) = _eps_hat(expert, z, np.full(count, gamma, np.float32), (AS_IT_IS,))
        x_hat = np.clip(z * np.sqrt(1 + np.exp(gamma)) - np.exp(gamma / 2) * np.asarray(eps_hat), -1, 1)
        z = (x_hat / np.sqrt(1 + np.exp(after)) + eps_hat / np.sqrt(1 + np.exp(-after))).astype(np.float32)
    return np.nan_to_num(0.5 * (x_hat + 1))


def measure(expert: Expert, readings: tuple[Reading, ...] = (AS_IT_IS,)) -> list[tuple[Level, ...]]:
    """The five levels of an expert, for every reading of its network's output.

    Args:
        expert: with concrete parameters.
        readings: fields of the expert to replace, (("prediction", "velocity"), ...); empty for none.

    Raises:
        ValueError: a prediction that is not finite.
    """
    shape, grey_levels = expert.image_shape, expert.pixel_scale.levels
    if shape[-1] == 1 and len(readings) > 1:  # every reading draws its own images
        return [measure(expert.replace(**dict(reading)))[0] for reading in readings]
    low, high = expert.gamma_range
    gammas = low + (high - low) * np.asarray(POSITIONS)
    count = len(gammas) * int(np.clip(np.ceil(PIXELS / np.prod(shape)), 1, MAX_IMAGES))
    images = drawn_images(expert, count) if shape[-1] == 1 else smooth_images(shape, count)
    x = 2 * (np.rint(images * (grey_levels - 1)) + 0.5) / grey_levels - 1
    many = np.repeat(gammas, count // len(gammas))[:, None, None, None]
    eps = np.random.default_rng(1).normal(size=x.shape)
    z = x / np.sqrt(1 + np.exp(many)) + eps / np.sqrt(1 + np.exp(-many))
    asked = _eps_hat(expert, z.astype(np.float32), many.ravel().astype(np.float32), readings)
    return [_levels(gammas, x, eps, np.asarray(eps_hat, np.float64)) for eps_hat in asked]


def _levels(gammas, x, eps, eps_hat) -> tuple[Level, ...]:
    def per_level(values):
        return np.mean(np.reshape(values, (len(gammas), -1)), axis=1)

    scales, power = np.sqrt(per_level(eps_hat**2)), np.exp(gammas)
    if not np.all(np.isfinite(scales)):
        bad = ", ".join(f"{gamma:.2f}" for gamma in gammas[~np.isfinite(scales)])
        raise ValueError(
            f"the network's predictions are not finite at gamma {bad}, so its weights or its kind are wrong; "
            "get the file again, or convert with --no-check to keep it as it is."
        )
    # x_hat - x = (sigma / alpha) (eps - eps_hat), without cancellation at low noise.
    errors, variance = power * per_level((eps - eps_hat) ** 2), per_level(x**2)
    linear = variance * power / (variance + power)
    return tuple(Level(*map(float, row)) for row in zip(gammas, scales, errors, linear, strict=True))


@functools.partial(jax.jit, static_argnames="readings")
def _eps_hat(expert, z, gamma, readings):
    # In one program, so that readings of the same network's output share its call.
    return [expert.replace(**dict(reading)).eps_hat(z, gamma) for reading in readings]


def score(levels: tuple[Level, ...]) -> float:
    """Geometric mean over the inner levels of the error in units of the linear denoiser's."""
    return float(np.exp(np.mean([np.log(level.error / level.linear) for level in levels[INNER]])))


def examine(expert: Expert, others: Mapping[str, Reading]) -> Arrival:
    """Measures an expert, and says what looks wrong.

    Args:
        expert: as it is to be written.
        others: readings that the file's contents allow too, by what to do for them ("--kind idode-vp").

    Raises:
        ValueError: a prediction that is not finite.
    """
    levels, *other_levels = measure(expert, (AS_IT_IS, *others.values()))
    own, warnings = score(levels), []
    better = {what: score(found) for what, found in zip(others, other_levels, strict=True)}
    best = min(better, key=better.get, default=None)
    if best is not None and better[best] < min(TRAINED, BETTER * own):
        warnings.append(f"the same file denoises better when it is read with {best}: convert it so")
    elif own > TRAINED:
        warnings.append("it denoises no better than a linear filter: the weights look untrained")
    scales = [level.scale for level in levels]
    if min(scales) < SCALE[0] or max(scales) > SCALE[1]:
        warnings.append(
            f"it predicts noise of root mean square {min(scales):.2g} to {max(scales):.2g}, where 1 is expected"
        )
    errors = [level.error for level in levels]
    if any(lower > 1.25 * higher for lower, higher in itertools.pairwise(errors)):
        warnings.append("its denoising error does not fall with the noise level")
    return Arrival(levels, tuple(warnings))
