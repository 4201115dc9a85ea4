"""Training of the small classifiers that the quality metric uses.

Cross-entropy with smoothed labels, Adam with a cosine schedule, and small shifts (mirror images too, where
left and right say nothing) as the only augmentation. The parameters kept are those of the best validation
loss; the test images are looked at once, after training. Steps are called from Python: reverse-mode
convolutions inside a loop are many times slower on a CPU.

Everything random is drawn on the host from (seed, step), so a run is a function of its seed.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from jaxmerge import checkpoint
from jaxmerge.data import Dataset
from jaxmerge.metrics import classifier as metric
from jaxmerge.metrics.classifier import Classifier

LABEL_SMOOTHING = 0.05
WEIGHT_DECAY = 1e-2
# Validation every this many steps; training ends after `PATIENCE` validations without a lower loss.
EVAL_EVERY = 100
PATIENCE = 10


@dataclasses.dataclass(frozen=True)
class Result:
    """A trained classifier and its record.

    Attributes:
        classifier: parameters of the best validation loss.
        metadata: JSON-ready record: command, settings, steps, losses and accuracies.
    """

    classifier: Classifier
    metadata: dict


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Attributes:
        shift: pixels that an image is moved by at most, in each direction.
        fill: what is moved in: "background" (level 0) or "mirror" (the image's own rows and columns).
        flip: mirror half of the images from left to right.
    """

    shift: int = 1
    fill: str = "background"
    flip: bool = False

    def __post_init__(self):
        if self.shift < 0 or self.fill not in ("background", "mirror"):
            raise ValueError(
                "classifier.shift must be at least 0 and classifier.fill 'background' or 'mirror', got "
                f"{self.shift} and {self.fill!r}; correct the config."
            )

    def __call__(self, images: UInt8[np.ndarray, "B H W C"], rng: np.random.Generator):
        """Varied images; the generator decides how."""
        moves = rng.integers(-self.shift, self.shift + 1, size=(len(images), 2))
        images = shifted(images, moves, self.fill)
        if not self.flip:
            return images
        mirrored = rng.integers(2, size=len(images)).astype(bool)
        return np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def shifted(
    images: UInt8[np.ndarray, "B H W C"], shifts: Int[np.ndarray, "B 2"], fill: str = "background"
) -> UInt8[np.ndarray, "B H W C"]:
    """Images moved by (rows, columns); `fill` is moved in, see `Augmentation`."""
    edge = int(np.abs(shifts).max(initial=0))
    border = ((0, 0), (edge, edge), (edge, edge), (0, 0))
    padded = np.pad(images, border, mode={"background": "constant", "mirror": "reflect"}[fill])
    rows = edge - shifts[:, 0, None] + np.arange(images.shape[1])
    columns = edge - shifts[:, 1, None] + np.arange(images.shape[2])
    return padded[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def batch(data: Dataset, batch_size: int, augmentation: Augmentation, *, seed: int, step: int):
    """The training batch of one step: images drawn with replacement, each varied at random.

    Returns:
        (images [batch_size, H, W, C], labels [batch_size]), a function of (seed, step) alone.
    """
    rng = np.random.default_rng([seed, step])
    chosen = rng.integers(len(data), size=batch_size)
    return augmentation(data.read(chosen), rng), data.labels[chosen]


def loss(
    classifier: Classifier,
    images: UInt8[Array, "B H W C"],
    labels: Int[Array, " B"],
    *,
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean cross-entropy in nats; `smoothing` of the label's probability is spread over all classes."""
    logits = classifier(classifier.scale.encode(images))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, classifier.classes), smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()


def _check(steps: int, batch_size: int, learning_rate: float) -> None:
    if steps < 1 or batch_size < 1 or not learning_rate > 0:
        raise ValueError(
            "classifier.steps and classifier.batch_size must be at least 1 and classifier.learning_rate "
            f"positive, got {steps}, {batch_size} and {learning_rate}; correct the config."
        )


def train_classifier(
    data: dict[str, Dataset],
    *,
    steps: int = 2000,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    width: int = 32,
    num_features: int = 64,
    augmentation: Augmentation = Augmentation(),
    seed: int = 0,
    path: str | None = None,
    command: str = "",
    on_progress: Callable[[int, dict], None] | None = None,
) -> Result:
    """Trains a classifier of a data set's labels and writes its checkpoint.

    Args:
        data: splits by their part, "train", "validation" and "test".
        steps: optimiser steps at most; validation may end training earlier.
        batch_size: images per step.
        learning_rate: Adam's highest rate; it falls to 0 along a cosine.
        width, num_features: of the network, see `Classifier`.
        augmentation: how training images are varied.
        seed: of the parameters, the batches and the variations.
        path: checkpoint directory to write; None writes nothing.
        command: the command line, for the record.
        on_progress: called as on_progress(step, {"train_loss", "validation_loss",
            "validation_accuracy"}) at every validation.

    Returns:
        A `Result` whose metadata holds accuracies in [0, 1] on the validation and test images.

    Raises:
        ValueError: a number of steps, batch size or learning rate that is not positive, or a loss that
            is not finite.
    """
    _check(steps, batch_size, learning_rate)
    train = data["train"]
    network = {
        "levels": train.levels,
        "shape": list(train.shape),
        "classes": int(train.labels.max()) + 1,
        "width": width,
        "num_features": num_features,
    }
    settings = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    fresh = metric.build(network, seed=seed)
    best, progress = _fit(fresh, settings, augmentation, train, data["validation"], on_progress)
    kept = metric.with_parameters(metric.build(network), best)
    record = {
        "kind": f"{train.name}_classifier",
        "command": command,
        "network": network,
        **settings,
        "augmentation": dataclasses.asdict(augmentation),
        "label_smoothing": LABEL_SMOOTHING,
        "weight_decay": WEIGHT_DECAY,
        **progress,
        **_accuracies(kept, data),
    }
    if path is not None:
        checkpoint.save(path, metric.parameters(kept), record)
    return Result(kept, record)


def _fit(
    model: Classifier,
    settings: dict,
    augmentation: Augmentation,
    train: Dataset,
    validation: Dataset,
    on_progress,
) -> tuple[dict, dict]:
    """Parameters of the lowest validation loss, as NumPy arrays, and how training went."""
    steps, seed = settings["steps"], settings["seed"]
    schedule = optax.cosine_decay_schedule(settings["learning_rate"], steps)
    optimiser = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(model, state, images, labels):
        value, grads = jax.value_and_grad(functools.partial(loss, smoothing=LABEL_SMOOTHING))(
            model, images, labels
        )
        updates, state = optimiser.update(grads, state, model)
        return optax.apply_updates(model, updates), state, value

    validation_loss = jax.jit(loss)
    state = optimiser.init(model)
    best, progress = None, {"validation_loss": float("inf"), "step_kept": 0}
    for step in range(1, steps + 1):
        images, labels = batch(train, settings["batch_size"], augmentation, seed=seed, step=step)
        model, state, value = update(model, state, jnp.asarray(images), jnp.asarray(labels))
        if step % EVAL_EVERY and step != steps:
            continue
        current = float(
            validation_loss(model, jnp.asarray(validation.images), jnp.asarray(validation.labels))
        )
        if not np.isfinite(current):
            raise ValueError(
                f"the classifier's validation loss must be finite, got {current} at step {step}; "
                "lower classifier.learning_rate."
            )
        progress |= {"steps_run": step, "train_loss": float(value)}
        if on_progress:
            seen = metric.accuracy(model, validation.images, validation.labels)
            now = {"train_loss": float(value), "validation_loss": current, "validation_accuracy": seen}
            on_progress(step, now)
        if current < progress["validation_loss"]:
            best = jax.device_get(metric.parameters(model))
            progress |= {"validation_loss": current, "step_kept": step}
        elif step - progress["step_kept"] >= PATIENCE * EVAL_EVERY:
            break
    return best, progress


def _accuracies(kept: Classifier, data: dict[str, Dataset]) -> dict:
    found = {"parameters": sum(p.size for p in jax.tree.leaves(metric.parameters(kept)))}
    for part, images in data.items():
        found[f"{part}_images"] = len(images)
        found[f"{part}_accuracy"] = metric.accuracy(kept, images.images, images.labels)
    return found
