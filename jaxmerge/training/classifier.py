"""Training of the digits classifier that the quality metric uses.

Cross-entropy with smoothed labels, Adam with a cosine schedule, and shifts by at most one pixel as the only
augmentation. The parameters kept are those of the best validation loss; the test images are looked
at once, after training. Steps are called from Python: reverse-mode convolutions inside a loop are many times
slower on a CPU.

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
from jaxmerge.data import digits
from jaxmerge.metrics import classifier as metric
from jaxmerge.metrics.classifier import LEVELS, NUM_CLASSES, DigitsClassifier
from jaxmerge.noise import PixelScale

COMMAND = "python main.py --config configs/digits_classifier.py"
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

    classifier: DigitsClassifier
    metadata: dict


def shifted(
    images: UInt8[np.ndarray, "B H W C"], shifts: Int[np.ndarray, "B 2"]
) -> UInt8[np.ndarray, "B H W C"]:
    """Images moved by (rows, columns) in -1 ... 1 each, with level 0 (background) moved in."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = 1 - shifts[:, 0, None] + np.arange(images.shape[1])
    columns = 1 - shifts[:, 1, None] + np.arange(images.shape[2])
    return padded[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def batch(images: np.ndarray, labels: np.ndarray, batch_size: int, *, seed: int, step: int):
    """The training batch of one step: images drawn with replacement, each moved at random.

    Returns:
        (images [batch_size, H, W, C], labels [batch_size]), a function of (seed, step) alone.
    """
    rng = np.random.default_rng([seed, step])
    chosen = rng.integers(len(images), size=batch_size)
    return shifted(images[chosen], rng.integers(-1, 2, size=(batch_size, 2))), labels[chosen]


def loss(
    classifier: DigitsClassifier,
    images: UInt8[Array, "B H W C"],
    labels: Int[Array, " B"],
    *,
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean cross-entropy in nats; `smoothing` of the label's probability is spread over all classes."""
    logits = classifier(PixelScale(LEVELS).encode(images))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, NUM_CLASSES), smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean()


def _check(steps: int, batch_size: int, learning_rate: float) -> None:
    if steps < 1 or batch_size < 1 or not learning_rate > 0:
        raise ValueError(
            "classifier.steps and classifier.batch_size must be at least 1 and classifier.learning_rate "
            f"positive, got {steps}, {batch_size} and {learning_rate}; correct the config."
        )


def train_digits_classifier(
    *,
    steps: int = 2000,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
    path: str | None = None,
    on_progress: Callable[[int, dict], None] | None = None,
) -> Result:
    """Trains the classifier on the digits' training images and writes its checkpoint.

    Args:
        steps: optimiser steps at most; validation may end training earlier.
        batch_size: images per step.
        learning_rate: Adam's highest rate; it falls to 0 along a cosine.
        seed: of the parameters, the batches and the shifts.
        path: checkpoint directory to write; None writes nothing.
        on_progress: called as on_progress(step, {"train_loss", "validation_loss",
            "validation_accuracy"}) at every validation.

    Returns:
        A `Result` whose metadata holds accuracies in [0, 1] on the validation and test images.

    Raises:
        ValueError: a number of steps, batch size or learning rate that is not positive, or a loss that
            is not finite.
    """
    _check(steps, batch_size, learning_rate)
    settings = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    best, progress = _fit(settings, digits.load("train"), digits.load("validation"), on_progress)
    kept = metric.with_parameters(best)
    result = Result(kept, _record(kept, settings, progress))
    if path is not None:
        checkpoint.save(path, metric.parameters(kept), result.metadata)
    return result


def _fit(settings: dict, train, validation, on_progress) -> tuple[dict, dict]:
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
    model = metric.build(seed)
    state = optimiser.init(model)
    best, progress = None, {"validation_loss": float("inf"), "step_kept": 0}
    for step in range(1, steps + 1):
        images, labels = batch(train.images, train.labels, settings["batch_size"], seed=seed, step=step)
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


def _record(kept: DigitsClassifier, settings: dict, progress: dict) -> dict:
    record = {
        "kind": "digits_classifier",
        "command": COMMAND,
        **settings,
        "label_smoothing": LABEL_SMOOTHING,
        "weight_decay": WEIGHT_DECAY,
        **progress,
        "parameters": sum(p.size for p in jax.tree.leaves(metric.parameters(kept))),
    }
    for name in ("train", "validation", "test"):
        data = digits.load(name)
        record[f"{name}_images"] = len(data.images)
        record[f"{name}_accuracy"] = metric.accuracy(kept, data.images, data.labels)
    return record
