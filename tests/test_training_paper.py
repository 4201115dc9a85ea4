"""Training at the paper's settings: its numbers, its networks, parts of batches, augmentation, dry runs."""

import dataclasses
import functools
import math
import os
import subprocess
import sys
import textwrap

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar10_vdm, imagenet32_edm, imagenet32_vdm
from jaxmerge.data import augment, miniature
from jaxmerge.experts import io
from jaxmerge.experts.base import Expert, per_image
from jaxmerge.noise import PixelScale
from jaxmerge.training import dry_run, objectives, recipes
from jaxmerge.training.optimizer import learning_rate_schedule

SCALE = PixelScale(256)
KEY = jax.random.key(11)
PAPER = {"cifar10_vdm": cifar10_vdm, "imagenet32_vdm": imagenet32_vdm, "imagenet32_edm": imagenet32_edm}


@flax.struct.dataclass
class Toy(Expert):
    """Answers linearly in the noise level and, where it is told, in the augmentation labels."""

    weight: jax.Array
    told: jax.Array

    @property
    def gamma_range(self):
        return -13.0, 5.0

    def network_eps(self, z, gamma, *, key=None):
        return self.weight * z * jnp.tanh(per_image(gamma, z))

    def eps_hat(self, z, gamma):
        return self.network_eps(z, gamma)

    def denoised(self, x, sigma_edm, *, augment=None, key=None):
        shift = 0.0 if augment is None else per_image(augment @ self.told, x)
        return self.weight * x / (1 + per_image(sigma_edm, x)) + shift


def toy():
    return Toy(jnp.linspace(0.1, 0.6, 3), jnp.linspace(-1.0, 1.0, augment.LABELS))


IMAGES = jnp.asarray(miniature.of("cifar10", 8).images)
LOSSES = {
    "vdm": objectives.vdm_loss,
    "edm": objectives.edm_loss,
    "edm, augmented": functools.partial(objectives.edm_loss, augmentation=0.5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_a_batch_see_the_noise_that_the_whole_batch_sees(name):
    @jax.jit
    def losses(images):
        of_part = functools.partial(LOSSES[name], toy(), key=KEY, scale=SCALE)
        halves = [of_part(half, part=objectives.Part(i, 2)) for i, half in enumerate(jnp.split(images, 2))]
        return of_part(images), jnp.stack(halves)

    whole, halves = losses(IMAGES)
    assert halves[0] != halves[1]
    np.testing.assert_allclose(jnp.mean(halves), whole, rtol=1e-5)


def test_augmentation_is_told_to_the_network_in_training_and_absent_otherwise():
    @jax.jit
    def losses(told):
        augmented = functools.partial(objectives.edm_loss, augmentation=0.9)
        call = (toy().replace(told=told), IMAGES, KEY, SCALE)
        return augmented(*call), augmented(*call, train=False), objectives.edm_loss(*call)

    heard, inference, plain = losses(toy().told)
    deaf, *_ = losses(jnp.zeros(augment.LABELS))
    assert heard != deaf and heard != plain and deaf != plain
    np.testing.assert_allclose(inference, plain, rtol=1e-6)


def test_dropout_differs_between_the_parts_of_a_batch():
    keys = [objectives.Part(i, 2).key(KEY) for i in range(2)]
    assert jax.random.uniform(keys[0]) != jax.random.uniform(keys[1])
    assert objectives.WHOLE.key(KEY) is KEY


@pytest.mark.slow
def test_two_devices_train_as_one_does(tmp_path):
    script = """
        import sys
        import jax, numpy as np
        sys.path.insert(0, sys.argv[1])
        import test_training_paper as here
        from jaxmerge.data import miniature
        from jaxmerge.training import step
        from jaxmerge.training.optimizer import make_optimizer

        optimizer = make_optimizer(learning_rate=0.05, steps=9)
        loss = here.functools.partial(here.objectives.vdm_loss, scale=here.SCALE)
        taken = step.make_step(loss, optimizer, miniature.of("cifar10", 12), batch_size=6, ema_decay=0.9, seed=0)
        state = step.initial_state(here.toy(), optimizer)
        losses = []
        for done in range(4):
            state, figures = taken(state, done, here.KEY)
            losses.append(float(figures["loss"]))
        print(len(state.step.sharding.device_set), *losses, *np.asarray(state.ema.weight))
    """
    found = {}
    for devices in (1, 2, 4):
        flags = f"--xla_force_host_platform_device_count={devices}"
        command = [sys.executable, "-c", textwrap.dedent(script), os.path.dirname(__file__)]
        ended = subprocess.run(
            command, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr[-500:]
        used, *numbers = map(float, ended.stdout.split())
        # Four devices cannot share six images; three can.
        assert used == {1: 1, 2: 2, 4: 3}[devices]
        found[devices] = numbers
    np.testing.assert_allclose(found[2], found[1], rtol=1e-5)
    np.testing.assert_allclose(found[4], found[1], rtol=1e-5)


def test_a_constant_rate_rises_and_stays():
    assert [float(learning_rate_schedule(2e-4, 9, 0, "constant")(i)) for i in (0, 8)] == pytest.approx(
        [2e-4] * 2
    )
    rate = learning_rate_schedule(2e-4, 1000, 100, "constant")
    np.testing.assert_allclose([rate(0), rate(50), rate(100), rate(999)], [0, 1e-4, 2e-4, 2e-4], rtol=1e-6)
    with pytest.raises(ValueError, match="schedule must be one of cosine, constant, got 'linear'"):
        learning_rate_schedule(1.0, 10, 1, "linear")


def asked(name):
    """The paper's recipe and the description of its expert."""
    config = PAPER[name].get_config()
    fields = [field.name for field in dataclasses.fields(recipes.Recipe)]
    recipe = recipes.Recipe(**{field: config.training[field] for field in fields})
    data = miniature.of(config.data.name, 1)
    described = recipes.description(config.expert.to_dict(), data, augmentation=recipe.augmentation)
    return config, recipe, described


@pytest.mark.parametrize(
    "name,images,parameters",
    [
        pytest.param("cifar10_vdm", 1280e6, (30e6, 33e6), marks=pytest.mark.slow),
        pytest.param("imagenet32_vdm", 1024e6, (120e6, 130e6), marks=pytest.mark.slow),
        ("imagenet32_edm", 1000e6, (55.7e6, 55.8e6)),
    ],
)
def test_paper_settings_see_the_published_number_of_images_with_networks_of_the_published_size(
    name, images, parameters
):
    _, recipe, described = asked(name)
    assert recipe.steps * recipe.batch_size == pytest.approx(images, rel=1e-5)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(io.build(described)))
    assert parameters[0] < count < parameters[1]
    assert described["shape"] == [32, 32, 3] and described["levels"] == 256


def test_edm_s_average_halves_in_half_a_million_images_and_its_rate_rises_over_ten_million():
    _, recipe, described = asked("imagenet32_edm")
    assert recipe.ema_decay ** (500_000 / recipe.batch_size) == pytest.approx(0.5)
    assert recipe.warmup_steps * recipe.batch_size == pytest.approx(10e6, rel=1e-3)
    assert described["architecture"]["augment_dim"] == augment.LABELS and recipe.augmentation == 0.12


def tiny(**changes):
    settings = {"kind": "edm", "width": 8, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": ()}
    settings |= {"depth": 1, "fourier": (6, 7), "mid_attention": True, "dropout": 0.1} | changes
    return recipes.description(
        settings, miniature.of("cifar10", 1), augmentation=0.1 * (settings["kind"] == "edm")
    )


@pytest.mark.parametrize("kind", ["vdm", "edm"])
def test_memory_is_estimated_from_shapes(kind):
    description, recipe = tiny(kind=kind), recipes.Recipe(10, 6, 1e-3, augmentation=0.1 * (kind == "edm"))
    found = dry_run.estimate(description, recipe)
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(io.build(description)))
    assert found.parameters == weights and found.gradients == 4 * weights
    # The weights, their average and the best of it; Adam's two moments; a few counters.
    assert 0 <= found.state - 4 * 5 * weights < 100
    # A convolution's input must be kept: at least 8 channels at full resolution, and not a thousand of them.
    assert 4 * 8 * 32 * 32 < found.activations < 4 * 1000 * 32 * 32 * 4
    assert found.on_device(3) == found.state + found.gradients + 3 * found.activations


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vdm", "edm"])
def test_a_dry_run_says_what_a_device_needs_and_takes_a_step(kind):
    description, recipe = tiny(kind=kind), recipes.Recipe(10, 6, 1e-3, augmentation=0.1 * (kind == "edm"))
    lines = []
    figures = dry_run.dry_run(description, recipe, miniature.of("cifar10", 2), devices=2, log=lines.append)
    assert figures["images per device"] == 3 and np.isfinite(figures["loss of one step"])
    assert "3 images per step on each of 2 devices" in lines[0] and "one step on 2 images" in lines[1]


@pytest.mark.full
@pytest.mark.parametrize("name", PAPER)
def test_paper_training_takes_a_step_at_full_size(name):
    config, recipe, described = asked(name)
    figures = dry_run.dry_run(described, recipe, miniature.of(config.data.name, 1), devices=8, log=print)
    # What the paper trained on has 40 or 80 GB.
    assert 1 < figures["GB per device"] < 80
    assert figures["loss of one step"] > 0


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"attn_resolutions": (3,)}, "attn_resolutions must be among the levels' resolutions 32, 16, got 3"),
        ({"channel_mult": (1,) * 7}, "has 7 levels, but images of side 32 can be halved 5 times only"),
        ({"kind": "vdm", "width": 30}, "expert.width must be a multiple of .*, got 30"),
        ({"kind": "vdm", "width": 2}, "expert.width must be a multiple of .*, got 2"),
        ({"kind": "gan"}, "expert.kind must be 'vdm' or 'edm', got 'gan'"),
    ],
)
def test_networks_that_do_not_fit_the_images_are_refused_in_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_augmentation_of_a_vdm_is_refused():
    settings = cifar10_vdm.get_config().expert.to_dict()
    with pytest.raises(ValueError, match="augmentation is EDM's; set it to 0"):
        recipes.description(settings, miniature.of("cifar10", 1), augmentation=0.12)
