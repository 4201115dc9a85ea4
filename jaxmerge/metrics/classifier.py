"""Small classifiers behind the quality metric: their network, its features and its score.

Each is named after the data set whose labels it tells apart: digits (which digit) and photos (which of the
source photographs). Its Fréchet distance is called "Fréchet distance, digits classifier" (`frechet_name`) and
never FID, and its score is called "classifier score" and never Inception score: both names belong to one
network trained on ImageNet, and the numbers cannot be compared with published ones.

The network is in flax's NNX tree style: rng-free, without state, a plain pytree. There is no normalisation
layer: at this depth none is needed, and what is missing cannot differ between training and use.
"""

import functools
import importlib.resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jaxmerge import checkpoint
from jaxmerge.noise import PixelScale

SCORE_NAME = "classifier score"
# Arguments of the digits' network; the shipped checkpoint is older than the record of them.
DIGITS = {"levels": 17, "shape": (8, 8, 1), "classes": 10, "width": 32, "num_features": 64}
# Widths grow up to this many times the first.
WIDEST = 4
# Images per call on the device; the last call is padded, so that one program serves any number.
CHUNK = 256


def frechet_name(data_name: str) -> str:
    """What the distance of a data set's classifier is called."""
    return f"Fréchet distance, {data_name} classifier"


class Classifier(nnx.Module):
    """Convolutional classifier of small square images.

    3x3 convolutions, the first at full resolution, each other one followed by a 2x2 average, down to a 2x2
    map that a dense layer reads. Positions are kept (no global average), as a stroke's place tells digits
    apart. For digits: three convolutions, 45 k parameters, 64 penultimate features.

    Args:
        levels: grey levels of the images.
        shape: (H, W, C), H = W a power of two of at least 4.
        classes: number K of classes.
        width: channels of the first two convolutions; they double with every further one, up to `WIDEST` times.
        num_features: size F of the penultimate layer.
        rngs: nnx keys of the initial parameters.

    Raises:
        ValueError: images of another shape.
    """

    def __init__(
        self,
        *,
        levels: int,
        shape: tuple[int, int, int],
        classes: int,
        width: int = 32,
        num_features: int = 64,
        rngs: nnx.Rngs,
    ):
        height, columns, channels = shape
        self.halvings = height.bit_length() - 2
        if height != columns or self.halvings < 1 or 2 << self.halvings != height:
            raise ValueError(
                f"a classifier's images must be square with a side of 4, 8, 16, ..., got {list(shape)}; "
                "crop or resize them."
            )
        self.scale, self.shape, self.classes = PixelScale(levels), tuple(shape), classes
        widths = [channels, width, *(width * min(2**k, WIDEST) for k in range(self.halvings))]
        for k in range(self.halvings + 1):
            conv = nnx.Conv(widths[k], widths[k + 1], (3, 3), padding=1, rngs=rngs)
            setattr(self, f"conv{k + 1}", conv)
        self.dense = nnx.Linear(2 * 2 * widths[-1], num_features, rngs=rngs)
        self.head = nnx.Linear(num_features, classes, rngs=rngs)

    def penultimate(self, x: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        """Features of images in VDM's pixel scale."""
        x = jax.nn.gelu(self.conv1(x))
        for k in range(self.halvings):
            x = nnx.avg_pool(jax.nn.gelu(getattr(self, f"conv{k + 2}")(x)), (2, 2), (2, 2))
        return jax.nn.gelu(self.dense(x.reshape(x.shape[0], -1)))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B K"]:
        """Logits of images in VDM's pixel scale."""
        return self.head(self.penultimate(x))


@functools.partial(jax.jit, static_argnames="method")
def _apply(classifier: Classifier, images: UInt8[Array, "B H W C"], method: str) -> Array:
    # Full float32 everywhere: a metric must not depend on the machine's default matrix precision.
    with jax.default_matmul_precision("highest"):
        return getattr(classifier, method)(classifier.scale.encode(images))


def _in_chunks(classifier: Classifier, images: np.ndarray, method: str) -> np.ndarray:
    images = classifier.scale.check(images, classifier.shape)
    if not len(images):
        raise ValueError("images must hold at least one image, got none; pass uint8 images [B, H, W, C].")
    out = []
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK]
        padded = np.pad(chunk, ((0, CHUNK - len(chunk)), (0, 0), (0, 0), (0, 0)))
        out.append(np.asarray(_apply(classifier, padded, method))[: len(chunk)])
    return np.concatenate(out)


def features(classifier: Classifier, images: np.ndarray) -> Float[np.ndarray, "B F"]:
    """Penultimate features of images, for the Fréchet distance.

    Args:
        classifier: see `shipped`.
        images: uint8 [B, H, W, C] of the classifier's shape and grey levels, any number B of images.

    Returns:
        Features [B, F], float32 on the host.

    Raises:
        ValueError: images of another dtype, shape or number of grey levels, or none at all.
    """
    return _in_chunks(classifier, images, "penultimate")


def logits(classifier: Classifier, images: np.ndarray) -> Float[np.ndarray, "B K"]:
    """Unnormalised log-probabilities of the classes; arguments and errors as in `features`."""
    return _in_chunks(classifier, images, "__call__")


def accuracy(classifier: Classifier, images: UInt8[np.ndarray, "B H W C"], labels: np.ndarray) -> float:
    """Share of images whose most probable class is the label, in [0, 1]."""
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


def classifier_score(classifier: Classifier, images: np.ndarray) -> float:
    """The "classifier score" of images: certain, and diverse over the K classes; 1 to K.

    One value for all images; its standard error comes from seeds. See `score_of_logits`.
    """
    return score_of_logits(logits(classifier, images))


def build(arguments: dict[str, Any], *, seed: int | None = None) -> Classifier:
    """A classifier with fresh parameters, or abstract ones (shapes only) without a seed.

    Args:
        arguments: of `Classifier`, without its keys; `DIGITS` for the digits.
        seed: of the parameters.
    """
    arguments = {**arguments, "shape": tuple(arguments["shape"])}
    if seed is None:
        return nnx.eval_shape(lambda: Classifier(**arguments, rngs=nnx.Rngs(0)))
    return Classifier(**arguments, rngs=nnx.Rngs(seed))


def parameters(classifier: Classifier) -> dict:
    """The parameters as nested dicts of arrays by layer name, the form that checkpoints have."""
    return nnx.to_pure_dict(nnx.state(classifier, nnx.Param))


def with_parameters(classifier: Classifier, params: dict) -> Classifier:
    """A classifier like the given one, abstract or not, with other parameters."""
    graph, state = nnx.split(classifier)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, params))
    return nnx.merge(graph, state)


def load_classifier(path: str) -> Classifier:
    """A classifier from the checkpoint that `training.classifier` wrote.

    Raises:
        ValueError: a missing or damaged checkpoint, or one of another network.
    """
    abstract = build(checkpoint.load_metadata(path).get("network", DIGITS))
    return with_parameters(abstract, checkpoint.load(path, parameters(abstract)))


def shipped_names() -> list[str]:
    """Names of the classifiers that come with the package."""
    root = importlib.resources.files("jaxmerge") / "assets"
    return sorted(p.name for p in root.iterdir() if p.is_dir() and p.name.endswith("_classifier"))


def shipped_path(name: str) -> str:
    """Folder of a classifier that comes with the package, for example "digits_classifier"."""
    return str(importlib.resources.files("jaxmerge") / "assets" / name)


def shipped(name: str) -> Classifier:
    """A classifier that comes with the package.

    Example:
        >>> features(shipped("digits_classifier"), np.zeros((3, 8, 8, 1), np.uint8)).shape
        (3, 64)
    """
    return load_classifier(shipped_path(name))
