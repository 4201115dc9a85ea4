"""Labels: a conditional expert with labels is an expert again, alone and inside merges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge import likelihood, sampling
from jaxmerge import probability_flow as flow
from jaxmerge.experts import io
from jaxmerge.experts.analytic import Gaussian
from jaxmerge.merge import Mixture, Switch
from tests import toys

CLASSES = 3
SHAPE = (4, 4, 1)
KEY = jax.random.key(0)
Z = jax.random.normal(KEY, (4, *SHAPE))
EACH = np.array([2, 0, 1, 2])

ask = jax.jit(lambda expert, z, gamma: expert.eps_hat(z, gamma))


def network(classes: int = CLASSES, seed: int = 0):
    """A small network of random weights (a fresh one ends in zeros, whatever its labels)."""
    architecture = dict(
        resolution=4, channels=1, model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[]
    )
    description = {
        "kind": "edm",
        "architecture": architecture | {"label_dim": classes},
        "sigma_range": [0.03, 80.0],
        "levels": 17,
        "shape": list(SHAPE),
    }
    expert, random = io.build(description), np.random.default_rng(seed)
    values = jax.tree.map(lambda a: random.normal(0, 0.3, a.shape).astype(np.float32), io.parameters(expert))
    return jax.device_put(io.with_parameters(expert, values))


@pytest.fixture(scope="module")
def edm():
    return network()


@pytest.fixture(scope="module")
def gaussian():
    return Gaussian.from_covariance(np.zeros(SHAPE), 0.25 * np.eye(16), gamma_range=toys.LOW)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_each_image_is_answered_for_its_own_class(edm):
    together = ask(edm.with_labels(EACH), Z, 1.0)
    for i, label in enumerate(EACH):
        close(together[i], ask(edm.with_labels(int(label)), Z[i : i + 1], 1.0)[0])
    others = ask(edm.with_labels((EACH + 1) % CLASSES), Z, 1.0)
    assert np.all(np.max(np.abs(together - others), axis=(1, 2, 3)) > 1e-2)


@pytest.mark.parametrize(
    "labels",
    [
        EACH.tolist(),
        jnp.asarray(EACH),
        np.eye(CLASSES)[EACH],
        np.eye(CLASSES, dtype=bool)[EACH],
        np.eye(CLASSES, dtype=int)[EACH],
    ],
    ids=["list", "jax", "rows", "bool rows", "int rows"],
)
def test_classes_and_rows_say_the_same(edm, labels):
    np.testing.assert_array_equal(edm.with_labels(labels).labels, np.eye(CLASSES)[EACH])


def test_one_row_serves_all_images_and_may_be_soft(edm):
    np.testing.assert_array_equal(edm.with_labels(2).labels, [0, 0, 1])
    np.testing.assert_array_equal(
        ask(edm.with_labels([0.0, 0.0, 1.0]), Z, 1.0), ask(edm.with_labels(2), Z, 1.0)
    )
    # The labels enter through a Linear, so that the first conditioning is affine in them.
    soft = ask(edm.with_labels([0.0, 0.5, 0.5]), Z, 1.0)
    assert np.max(np.abs(soft - ask(edm.with_labels(1), Z, 1.0))) > 1e-3
    assert np.max(np.abs(soft - ask(edm.with_labels(2), Z, 1.0))) > 1e-3


def test_labels_are_leaves_and_other_labels_compile_nothing_anew(edm):
    traces = []

    @jax.jit
    def counted(expert, z):
        traces.append(1)
        return expert.eps_hat(z, 1.0)

    first, second = (counted(edm.with_labels(c), Z) for c in (0, 1))
    assert len(traces) == 1 and np.max(np.abs(first - second)) > 1e-2
    inside = jax.jit(lambda expert, c, z: expert.with_labels(c).eps_hat(z, 1.0))
    close(inside(edm, jnp.asarray(EACH), Z), ask(edm.with_labels(EACH), Z, 1.0))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (3, "classes must be 0 to 2, got 3"),
        (-1, "classes must be 0 to 2, got -1"),
        ([0, 1, 5], "classes must be 0 to 2, got 5"),
        (np.zeros((2, 4)), r"one-hot rows \[B, 3\] or \[3\], got float64 of the shape \[2, 4\]"),
        (np.zeros(2), r"got float64 of the shape \[2\]"),
        (1.0, r"got float64 of the shape \[\]"),
        ("cat", "labels must be a class from 0 to 2"),
        (None, "labels must be a class from 0 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(edm, labels, message):
    with pytest.raises(ValueError, match=message):
        edm.with_labels(labels)


def test_a_batch_of_another_size_is_refused(edm):
    with pytest.raises(ValueError, match="there are labels of 4 images, got 3 images"):
        ask(edm.with_labels(EACH), Z[:3], 1.0)


def test_a_conditional_network_without_labels_says_how_to_give_them(edm):
    with pytest.raises(ValueError, match=r"conditional on 3 classes, got no labels; use expert.with_labels"):
        ask(edm, Z, 1.0)


def test_experts_without_classes_take_no_labels(edm, gaussian):
    plain, one = network(classes=0), jnp.ones(4)
    merged = Switch(gaussian, plain, gamma=0.0)
    for expert in (gaussian, plain, io.shipped("digits_vdm"), merged, Mixture([plain, plain], [0.5, 0.5])):
        assert expert.classes is None
        with pytest.raises(ValueError, match="is not conditional and takes no labels"):
            expert.with_labels(1)
    with pytest.raises(ValueError, match="takes no labels"):
        plain.denoised(Z, one, labels=1)
    with pytest.raises(ValueError, match="takes no labels"):
        sampling.generate(plain, 4, key=KEY, labels=1)


def test_a_switch_passes_labels_to_its_conditional_expert(edm, gaussian):
    merged = Switch(gaussian, edm, gamma=0.5).with_labels(EACH)
    close(ask(merged, Z, 2.0), ask(edm.with_labels(EACH), Z, 2.0))
    close(ask(merged, Z, -2.0), ask(gaussian, Z, -2.0))
    assert merged.gamma == 0.5 and merged.classes == CLASSES
    assert merged.pieces()[1].expert.labels.shape == (4, CLASSES)


def test_a_mixture_passes_labels_to_all_conditional_experts(edm, gaussian):
    other = network(seed=1)
    inner = Switch(gaussian, other, gamma=0.5)
    mixed = Mixture([edm, inner], [0.25, 0.75]).with_labels(EACH)
    want = 0.25 * ask(edm.with_labels(EACH), Z, 2.0) + 0.75 * ask(other.with_labels(EACH), Z, 2.0)
    close(ask(mixed, Z, 2.0), want)
    close(ask(mixed.pieces()[1].expert, Z, 2.0), want)


def test_experts_of_different_classes_get_their_labels_before_the_merge(edm):
    other = network(classes=2, seed=1)
    with pytest.raises(ValueError, match="same number of classes"):
        Mixture([edm, other], [0.5, 0.5]).with_labels(0)
    mixed = Mixture([edm.with_labels(2), other.with_labels(0)], [0.5, 0.5])
    want = 0.5 * (ask(edm.with_labels(2), Z, 2.0) + ask(other.with_labels(0), Z, 2.0))
    close(ask(mixed, Z, 2.0), want)


SAMPLERS = {
    "heun": sampling.Settings(steps=4),
    "ancestral": sampling.Settings(sampler="ancestral", steps=4),
    "per image": sampling.Settings(sampler="ode", control=flow.PerImage(1e-2, 1e-2, max_steps=64)),
}


@pytest.mark.parametrize("settings", SAMPLERS.values(), ids=SAMPLERS)
def test_samples_have_the_labels_of_their_numbers_in_any_batch(edm, gaussian, settings):
    merged = Switch(gaussian, edm, gamma=-5.0)
    images, _ = sampling.generate(merged, 4, key=KEY, settings=settings, labels=EACH, batch_size=2)
    for label in range(CLASSES):
        one, _ = sampling.generate(merged, 4, key=KEY, settings=settings, labels=label, batch_size=2)
        own = label == EACH
        assert np.mean(np.abs(images[own].astype(int) - one[own]) > 1) < 0.01
        assert np.mean(images[~own] != one[~own]) > 0.05


CONTROLS = {"fixed": flow.FixedGrid(0.5), "per image": flow.PerImage(1e-2, 1e-2, max_steps=64)}


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_likelihoods_take_one_label_per_image_also_where_they_are_solved_again(edm, control):
    images = np.random.default_rng(0).integers(0, 17, (4, *SHAPE)).astype(np.uint8)
    settings = likelihood.Settings(control=control)

    def score(labels, settings=settings, refinement=None):
        return likelihood.evaluate(
            edm, images, key=KEY, settings=settings, labels=labels, refinement=refinement, batch_size=2
        )

    each, every = score(EACH), np.stack([score(c).bpd for c in range(CLASSES)])
    assert np.all(each.ok)
    close(each.bpd, every[EACH, np.arange(4)])
    assert np.min(np.abs(each.bpd - every[(EACH + 1) % CLASSES, np.arange(4)])) > 1e-3
    if isinstance(control, flow.FixedGrid):
        tolerance = float(np.sort(each.error)[1])
        refined = score(EACH, refinement=likelihood.Refinement(tolerance, factor=2.0))
        finer = score(EACH, settings.replace(control=control.refined(2.0)))
        assert refined.refined.sum() == 2
        close(refined.bpd, np.where(refined.refined, finer.bpd, each.bpd))


@pytest.mark.parametrize("labels", [[0, 1], np.eye(3)[:2]], ids=["classes", "rows"])
def test_labels_for_another_number_of_samples_are_refused(edm, labels):
    with pytest.raises(ValueError, match="there are labels of 2 images, got 5 images"):
        sampling.generate(edm, 5, key=KEY, labels=labels)
