"""The digits classifier behind the quality metric: a small network, its features and its score.

Its Fréchet distance is called "Fréchet distance, digits classifier" (`FRECHET_NAME`) and never FID, and
its score is called "classifier score" and never Inception score: both names belong to one network trained on
ImageNet, which says little about 8x8 digits, and the numbers cannot be compared with published ones.

The network is in flax's NNX tree style: rng-free, without state, a plain pytree. There is no normalisation
layer: at this depth none is needed, and what is missing cannot differ between training and use.
"""

import functools
import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jaxmerge import checkpoint
from jaxmerge.noise import PixelScale

FRECHET_NAME = "Fréchet distance, digits classifier"
SCORE_NAME = "classifier score"

LEVELS = 17
IMAGE_SHAPE = (8, 8, 1)
NUM_CLASSES = 10
# Images per call on the device; the last call is padded, so that one program serves any number.
CHUNK = 256


class DigitsClassifier(nnx.Module):
    """Convolutional classifier of 8x8 digits, 45 k parameters, 64 penultimate features.

    Two 3x3 convolutions at 8x8, one at 4x4, a dense layer on the 2x2 map of averages. Positions are
    kept (no global average), as a stroke's place tells digits apart.

    Args:
        width: channels of the first two convolutions.
        num_features: size F of the penultimate layer.
        rngs: nnx keys of the initial parameters.
    """

    def __init__(self, *, width: int = 32, num_features: int = 64, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, width, (3, 3), padding=1, rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), padding=1, rngs=rngs)
        self.conv3 = nnx.Conv(width, 2 * width, (3, 3), padding=1, rngs=rngs)
        self.dense = nnx.Linear(2 * 2 * 2 * width, num_features, rngs=rngs)
        self.head = nnx.Linear(num_features, NUM_CLASSES, rngs=rngs)

    def penultimate(self, x: Float[Array, "B 8 8 1"]) -> Float[Array, "B F"]:
        """Features of images in VDM's pixel scale."""
        x = jax.nn.gelu(self.conv1(x))
        x = nnx.avg_pool(jax.nn.gelu(self.conv2(x)), (2, 2), (2, 2))
        x = nnx.avg_pool(jax.nn.gelu(self.conv3(x)), (2, 2), (2, 2))
        return jax.nn.gelu(self.dense(x.reshape(x.shape[0], -1)))

    def __call__(self, x: Float[Array, "B 8 8 1"]) -> Float[Array, "B 10"]:
        """Logits of images in VDM's pixel scale."""
        return self.head(self.penultimate(x))


@functools.partial(jax.jit, static_argnames="method")
def _apply(classifier: DigitsClassifier, images: UInt8[Array, "B 8 8 1"], method: str) -> Array:
    # Full float32 everywhere: a metric must not depend on the machine's default matrix precision.
    with jax.default_matmul_precision("highest"):
        return getattr(classifier, method)(PixelScale(LEVELS).encode(images))


def _in_chunks(classifier: DigitsClassifier, images: np.ndarray, method: str) -> np.ndarray:
    images = PixelScale(LEVELS).check(images, IMAGE_SHAPE)
    if not len(images):
        raise ValueError("images must hold at least one image, got none; pass uint8 images [B, 8, 8, 1].")
    out = []
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        padded = np.pad(chunk, ((0, CHUNK - len(chunk)), (0, 0), (0, 0), (0, 0)))
        out.append(np.asarray(_apply(classifier, padded, method))[: len(chunk)])
    return np.concatenate(out)


def features(classifier: DigitsClassifier, images: np.ndarray) -> Float[np.ndarray, "B F"]:
    """Penultimate features of images, for the Fréchet distance.

    Args:
        classifier: see `load_digits_classifier`.
        images: uint8 [B, 8, 8, 1], grey levels 0 to 16, any number B of images.

    Returns:
        Features [B, F], float32 on the host.

    Raises:
        ValueError: images of another dtype, shape or number of grey levels, or none at all.
    """
    return _in_chunks(classifier, images, "penultimate")


def logits(classifier: DigitsClassifier, images: np.ndarray) -> Float[np.ndarray, "B 10"]:
    """Unnormalised log-probabilities of the ten digits; arguments and errors as in `features`."""
    return _in_chunks(classifier, images, "__call__")


def accuracy(classifier: DigitsClassifier, images: UInt8[np.ndarray, "B 8 8 1"], labels: np.ndarray) -> float:
    """Share of images whose most probable digit is the label, in [0, 1]."""
    return float(np.mean(logits(classifier, images).argmax(axis=1) == np.asarray(labels)))


def score_of_logits(logits: np.ndarray | Array) -> float:
    """exp(mean KL(p(y|x) || p(y))), the Inception score's formula (Salimans et al. 2016, Sec. 4).

    Between 1 (every image has the same class probabilities) and K (certain, and evenly spread).

    Args:
        logits: [B, K]; p(y|x) is their softmax and p(y) its mean over the B images.

    Returns:
        The score, computed in float64.

    Raises:
        ValueError: not a finite, non-empty array [B, K].
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not logits.size or not np.isfinite(logits).all():
        raise ValueError(
            f"logits must be a finite array [B, K] of at least one image, got the shape {list(logits.shape)} "
            f"with {int(np.sum(~np.isfinite(logits)))} values that are not finite; find failed samples first."
        )
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    log_marginal = np.logaddexp.reduce(log_p, axis=0) - np.log(len(log_p))
    return float(np.exp(np.mean(np.sum(np.exp(log_p) * (log_p - log_marginal), axis=1))))


def classifier_score(classifier: DigitsClassifier, images: np.ndarray) -> float:
    """The "classifier score" of images: certain, and diverse over the ten digits; 1 to 10.

    One value for all images; its standard error comes from seeds. See `score_of_logits`.
    """
    return score_of_logits(logits(classifier, images))


def build(seed: int | None = None) -> DigitsClassifier:
    """A classifier with fresh parameters, or abstract ones (shapes only) without a seed."""
    if seed is None:
        return nnx.eval_shape(lambda: DigitsClassifier(rngs=nnx.Rngs(0)))
    return DigitsClassifier(rngs=nnx.Rngs(seed))


def parameters(classifier: DigitsClassifier) -> dict:
    """The parameters as nested dicts of arrays by layer name, the form that checkpoints have."""
    return nnx.to_pure_dict(nnx.state(classifier, nnx.Param))


def with_parameters(params: dict) -> DigitsClassifier:
    """A classifier with the given parameters; the inverse of `parameters`."""
    classifier = build()
    state = nnx.state(classifier, nnx.Param)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, params))
    nnx.update(classifier, state)
    return classifier


def load_classifier(path: str) -> DigitsClassifier:
    """A classifier from the checkpoint that `training.classifier` wrote.

    Raises:
        ValueError: a missing or damaged checkpoint, or one of another network.
    """
    return with_parameters(checkpoint.load(path, parameters(build())))


def digits_classifier_path() -> str:
    """Directory of the shipped classifier's checkpoint."""
    return str(importlib.resources.files("jaxmerge") / "assets" / "digits_classifier")


def load_digits_classifier() -> DigitsClassifier:
    """The classifier shipped with the package.

    Example:
        >>> features(load_digits_classifier(), np.zeros((3, 8, 8, 1), np.uint8)).shape
        (3, 64)
    """
    return load_classifier(digits_classifier_path())
