"""Objectives against closed forms; the loop's promises: exact resume, early stopping, orderly stops."""

import functools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmerge import checkpoint, noise
from jaxmerge.data import digits
from jaxmerge.experts import io
from jaxmerge.experts.base import Expert, per_image
from jaxmerge.noise import PixelScale
from jaxmerge.training import loop, objectives, recipes, step, validation
from jaxmerge.training.optimizer import decay_matrices, learning_rate_schedule, make_optimizer
from jaxmerge.training.tables import Table, read
from jaxmerge.training.validation import validator

SCALE = PixelScale(17)
KEY = jax.random.key(3)


@flax.struct.dataclass
class Linear(Expert):
    """eps_hat = weight z + bias, one weight per pixel; with dropout of whole pixels in training."""

    weight: jax.Array
    bias: jax.Array

    @property
    def gamma_range(self):
        return SCALE.gamma_min, 5.0

    def network_eps(self, z, gamma, *, key=None):
        keep = 1.0 if key is None else jax.random.bernoulli(key, 0.9, z.shape)
        return (self.weight * z + self.bias) * keep

    def eps_hat(self, z, gamma):
        return self.network_eps(z, gamma)


def linear(weight=0.0, bias=0.0):
    return Linear(jnp.full((8, 8, 1), weight), jnp.full((1,), bias))


@flax.struct.dataclass
class OneImage(Expert):
    """The exact expert of a data set with one image, in both conventions."""

    levels: jax.Array
    gamma_range = (SCALE.gamma_min, 5.0)

    def network_eps(self, z, gamma, *, key=None):
        g = per_image(gamma, z)
        return (z - noise.alpha(g) * SCALE.encode(self.levels)) / noise.sigma(g)

    def eps_hat(self, z, gamma):
        return self.network_eps(z, gamma)

    def denoised(self, x, sigma_edm, *, key=None):
        return jnp.broadcast_to(SCALE.encode_edm(self.levels), x.shape)


@pytest.fixture(scope="module")
def train_set():
    return digits.load("train").take(60)


@pytest.fixture(scope="module")
def images(train_set):
    return jnp.asarray(train_set.images)


# --- objectives ------------------------------------------------------------------------------------


def test_antithetic_times_are_equally_spaced_and_move_with_the_key():
    times = np.sort(objectives.antithetic_times(KEY, 8))
    np.testing.assert_allclose(np.diff(times), 1 / 8, atol=1e-6)
    assert abs(times[0] - np.sort(objectives.antithetic_times(jax.random.key(4), 8))[0]) > 1e-3


def test_both_objectives_vanish_for_the_exact_expert_of_a_single_image(images):
    expert, batch = OneImage(images[0]), jnp.repeat(images[:1], 32, axis=0)
    # float32 leaves (z - alpha x) / sigma with an error of about 1e-7 / sigma, sigma >= 0.02.
    assert objectives.vdm_loss(expert, batch, KEY, SCALE) < 1e-8
    assert objectives.diffusion_bpd(expert, batch, KEY, SCALE) < 1e-8
    assert objectives.edm_loss(expert, batch, KEY, SCALE) == 0


def test_vdm_loss_of_the_zero_prediction_is_the_length_of_the_range_in_bits(images):
    # E ||eps||^2 / D = 1, so L = (gamma_max - gamma_min) / (2 ln 2); 60 * 64 squares have a relative
    # standard deviation of sqrt(2 / 3840) = 0.023.
    loss = objectives.vdm_loss(linear(), images, KEY, SCALE)
    expected = (5.0 - SCALE.gamma_min) / (2 * math.log(2))
    assert abs(loss - expected) < 4 * 0.023 * expected


def test_vdm_loss_of_a_constant_prediction_adds_its_square(images):
    # E (eps - b)^2 = 1 + b^2, in the same noise up to 2 b mean(eps).
    zero, one = (objectives.vdm_loss(linear(0.0, b), images, KEY, SCALE, train=False) for b in (0.0, 1.0))
    expected = (5.0 - SCALE.gamma_min) / (2 * math.log(2))
    assert abs(one - zero - expected) < 4 * 2 / math.sqrt(3840) * expected


def test_vdm_loss_without_dropout_is_the_expert_s_diffusion_term(images):
    expert, keys = linear(0.4, 0.1), jax.random.split(KEY, 40)
    losses = jax.vmap(lambda k: objectives.vdm_loss(expert, images, k, SCALE, train=False))(keys)
    terms = jax.vmap(lambda k: objectives.diffusion_bpd(expert, images, k, SCALE))(
        jax.random.split(jax.random.key(9), 40)
    )
    se = float(np.hypot(losses.std(), terms.std()) / np.sqrt(len(keys)))
    assert abs(float(losses.mean() - terms.mean())) <= 4 * se


def test_diffusion_terms_of_two_parts_of_the_range_add_up(images):
    expert, keys = linear(0.4, 0.1), jax.random.split(KEY, 40)

    def mean(**part):
        draws = jax.vmap(lambda k: objectives.diffusion_bpd(expert, images, k, SCALE, **part))(keys)
        return float(draws.mean()), float(draws.std() / np.sqrt(len(keys)))

    (low, low_se), (high, high_se), (whole, whole_se) = mean(gamma_high=-1.0), mean(gamma_low=-1.0), mean()
    assert abs(low + high - whole) < 4 * math.sqrt(low_se**2 + high_se**2 + whole_se**2)


class Recorder(OneImage):
    """Answers with its input and remembers what it was asked."""

    def denoised(self, x, sigma_edm, *, key=None):
        self.asked.append((np.asarray(x), np.asarray(sigma_edm), key))
        return x


def recorder():
    expert = Recorder(jnp.zeros((8, 8, 1)))
    object.__setattr__(expert, "asked", [])
    return expert


def test_edm_loss_of_the_identity_has_its_closed_form(images):
    # D = y + sigma n gives E lambda sigma^2 = 1 + E sigma^2 / sigma_data^2, ln sigma ~ N(m, s^2).
    m, s = -1.0, 0.3
    batch = jnp.repeat(images, 20, axis=0)
    loss = objectives.edm_loss(recorder(), batch, KEY, SCALE, p_mean=m, p_std=s)
    expected = 1 + math.exp(2 * m + 2 * s**2) / 0.25
    assert abs(loss - expected) < 0.02 * expected


def test_edm_noise_levels_are_log_normal_and_images_are_in_edm_s_own_scale(images):
    expert, batch = recorder(), jnp.repeat(images, 20, axis=0)
    objectives.edm_loss(expert, batch, KEY, SCALE)
    x, sigma_edm, key = expert.asked[0]
    logs = np.sort(np.log(sigma_edm))
    assert abs(logs.mean() + 1.2) < 0.01
    assert abs(logs.std() - 1.2) < 0.02
    assert key is not None
    quiet = sigma_edm < 0.1
    y = 2.0 * np.asarray(batch)[quiet] / 16 - 1
    residual = (x[quiet] - y) / sigma_edm[quiet, None, None, None]
    assert abs(residual.std() - 1) < 0.02
    assert abs(residual.mean()) < 0.02


def test_dropout_keys_reach_the_expert_in_training_only(images):
    expert = linear(1.0)
    first, second = (objectives.vdm_loss(expert, images, KEY, SCALE, train=t) for t in (True, False))
    assert first != second
    asked = recorder()
    objectives.edm_loss(asked, images, KEY, SCALE, train=False)
    assert asked.asked[0][2] is None


def test_validator_repeats_itself_and_orders_experts(train_set):
    evaluate = validator(objectives.vdm_loss, train_set, repeats=4)
    good, bad = evaluate(linear(0.5)), evaluate(linear(-0.5))
    assert evaluate(linear(0.5)) == good
    assert good["loss"] < bad["loss"]
    assert 0 < good["diffusion_bpd_se"] < 0.5
    parts = [value for name, value in good.items() if name.startswith("bpd_gamma_")]
    assert len(parts) == len(validation.parts_of(linear(0.5).gamma_range)) > 2
    assert sum(parts) == pytest.approx(good["diffusion_bpd"]) and min(parts) > 0


def test_parts_of_the_noise_range_are_common_levels_and_the_experts_own_ends():
    assert validation.parts_of((-7.5, 1.0)) == {
        (-7.5, -6.0): 1,
        (-6.0, -3.0): 2,
        (-3.0, 0.0): 3,
        (0.0, 1.0): 4,
    }
    assert list(validation.parts_of((-13.0, 8.7)).values()) == [0, 1, 2, 3, 4, 5]


# --- optimizer ---------------------------------------------------------------------------------------


def test_weight_decay_spares_biases_and_norms():
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    decay = decay_matrices(0.1)
    updates, _ = decay.update(zeros, decay.init(params), params)
    np.testing.assert_allclose(updates["kernel"], 0.3, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def test_optimizer_is_adamw_with_clipping():
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5])}
    ours = make_optimizer(learning_rate=0.1, steps=20, warmup_steps=5, weight_decay=0.01, clip=1.0)
    schedule = learning_rate_schedule(0.1, 20, 5)
    mask = {"kernel": True, "bias": False}
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b1=0.9, b2=0.99, weight_decay=0.01, mask=mask)
    )
    a = b = params
    state_a, state_b = ours.init(a), theirs.init(b)
    for i in range(8):
        grads = jax.tree.map(lambda p, i=i: 3.0 * jnp.sin(p + i), a)
        up_a, state_a = ours.update(grads, state_a, a)
        up_b, state_b = theirs.update(grads, state_b, b)
        a, b = optax.apply_updates(a, up_a), optax.apply_updates(b, up_b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_learning_rate_rises_to_its_peak_and_falls_to_zero():
    schedule = learning_rate_schedule(2e-3, 100, 10)
    assert schedule(0) == 0
    assert schedule(10) == pytest.approx(2e-3)
    assert schedule(55) == pytest.approx(1e-3)
    assert schedule(100) == pytest.approx(0, abs=1e-9)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup_steps must be at least 0 and less than steps = 10, got 10"):
        make_optimizer(learning_rate=1e-3, steps=10, warmup_steps=10)


# --- tables ------------------------------------------------------------------------------------------


def test_table_continues_after_the_given_step_and_keeps_floats_exact(tmp_path):
    path, values = tmp_path / "losses.csv", np.random.RandomState(0).rand(5).tolist()
    table = Table(path, last_step=0)
    table.append([{"step": i + 1, "loss": v} for i, v in enumerate(values)])
    with path.open("a") as file:
        file.write("6,0.1")  # killed in the middle of a row
    Table(path, last_step=3).append([{"step": 4, "loss": 0.5}])
    assert [int(row["step"]) for row in read(path)] == [1, 2, 3, 4]
    assert [float(row["loss"]) for row in read(path)] == [*values[:3], 0.5]
    Table(path, last_step=0)
    assert not path.exists()


# --- the loop ----------------------------------------------------------------------------------------


def test_every_epoch_shows_every_image_once_in_a_new_order():
    seen = np.concatenate([step.batch_indices(5, s, 60, 16) for s in range(15)])  # four epochs
    epochs = seen.reshape(4, 60)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(60))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_depend_on_seed_and_step_alone():
    first = step.batch_indices(5, 7, 60, 16)
    step._permutation.cache_clear()
    np.testing.assert_array_equal(step.batch_indices(5, 7, 60, 16), first)
    assert (step.batch_indices(6, 7, 60, 16) != first).any()
    # A batch larger than the set runs through several epochs.
    assert np.bincount(step.batch_indices(5, 0, 60, 150)).tolist().count(2) >= 30


def test_ema_warms_up_and_is_the_weighted_mean_of_the_weights(train_set):
    assert float(step.ema_decay_at(jnp.int32(0), 0.999)) == pytest.approx(0.1)
    assert float(step.ema_decay_at(jnp.int32(10**6), 0.999)) == pytest.approx(0.999)
    optimizer = optax.sgd(0.1)
    state = step.initial_state(linear(0.2), optimizer)
    loss_fn = functools.partial(objectives.vdm_loss, scale=SCALE)
    ema = np.asarray(state.ema.weight)
    program = step.make_program(loss_fn, optimizer, batch_size=len(train_set), ema_decay=0.999)
    for s in range(3):
        state, _ = program(state, KEY, train_set.images)
        d = min(0.999, (1 + s) / (10 + s))
        ema = d * ema + (1 - d) * np.asarray(state.expert.weight)
    assert int(state.step) == 3
    np.testing.assert_allclose(state.ema.weight, ema, rtol=1e-6)


LOSS = functools.partial(objectives.vdm_loss, scale=SCALE)
OPTIMIZER = make_optimizer(learning_rate=0.05, steps=30, warmup_steps=3, weight_decay=0.01)


def run(workdir, data, *, evaluate=None, **changes):
    arguments = {"steps": 30, "batch_size": 16, "save_every": 10, "eval_every": 17, "seed": 1}
    arguments |= {"optimizer": OPTIMIZER, "log": lambda line: None} | changes
    evaluate = evaluate or validator(objectives.vdm_loss, data, repeats=2)
    return loop.train(linear(0.1), LOSS, data, workdir=workdir, evaluate=evaluate, **arguments)


def loss_column(workdir):
    return [(row["step"], row["loss"]) for row in read(workdir / "losses.csv")]


def assert_same_weights(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, train_set):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(workdir, train_set)


def test_training_lowers_the_loss_and_writes_its_tables(uninterrupted):
    workdir, result = uninterrupted
    losses = [float(loss) for _, loss in loss_column(workdir)]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert [int(row["step"]) for row in read(workdir / "validation.csv")] == [17, 30]
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["step_00000020", "step_00000030"]
    record = result.record
    assert record == json.loads(json.dumps(record))
    assert record["steps"] == 30
    assert record["validation"]["step"] == record["best_step"]
    assert record["data"]["images"] == 60
    assert set(record["versions"]) == {"jax", "flax", "jaxmerge"}


class Killed(Exception):
    pass


def test_killed_run_continues_with_the_same_numbers(tmp_path, train_set, uninterrupted):
    def killed_here(expert):
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path, train_set, evaluate=killed_here)
    assert len(loss_column(tmp_path)) == 17  # the last checkpoint is from step 10
    result = run(tmp_path, train_set)
    workdir, whole = uninterrupted
    assert loss_column(tmp_path) == loss_column(workdir)
    assert read(tmp_path / "validation.csv") == read(workdir / "validation.csv")
    assert_same_weights(result.expert, whole.expert)
    assert_same_weights(result.last, whole.last)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_request_saves_and_the_same_call_continues(tmp_path, train_set, uninterrupted, number):
    before = signal.getsignal(number)
    honest = validator(objectives.vdm_loss, train_set, repeats=2)

    def asked_to_stop_here(expert):
        os.kill(os.getpid(), number)
        return honest(expert)

    with pytest.raises(
        loop.Interrupted, match="stopped after step 17 of 30; give the same command"
    ) as caught:
        run(tmp_path, train_set, evaluate=asked_to_stop_here)
    assert caught.value.number == number
    assert signal.getsignal(number) == before
    assert checkpoint.exists(tmp_path / "checkpoints" / "step_00000017")
    result = run(tmp_path, train_set)
    workdir, whole = uninterrupted
    assert loss_column(tmp_path) == loss_column(workdir)
    assert_same_weights(result.expert, whole.expert)


def test_process_killed_without_warning_continues_with_the_same_numbers(tmp_path, train_set, uninterrupted):
    script = """
        import os, signal, sys
        sys.path.insert(0, sys.argv[2])
        import test_training
        from jaxmerge.data import digits

        def killed_here(expert):
            os.kill(os.getpid(), signal.SIGKILL)

        test_training.run(sys.argv[1], digits.load("train").take(60), evaluate=killed_here)
    """
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), here]
    ended = subprocess.run(
        command, env=os.environ, cwd=os.path.dirname(here), capture_output=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-500:]
    run(tmp_path, train_set)
    assert loss_column(tmp_path) == loss_column(uninterrupted[0])


def test_finished_run_is_not_trained_again(uninterrupted, train_set):
    workdir, whole = uninterrupted
    again = run(workdir, train_set)
    assert_same_weights(again.expert, whole.expert)
    assert again.record == whole.record


def test_best_validation_weights_are_kept_apart(tmp_path, train_set):
    figures, seen = iter([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]), []

    def scripted(expert):
        return {"loss": next(figures)}

    better = []
    result = run(
        tmp_path,
        train_set,
        evaluate=scripted,
        eval_every=5,
        on_best=lambda found: better.append((found.record["steps_done"], np.asarray(found.expert.weight))),
        on_eval=lambda done, ema: seen.append((done, np.asarray(ema.weight))),
    )
    assert [done for done, _ in seen] == [5, 10, 15, 20, 25, 30]
    assert [done for done, _ in better] == [5, 10]
    np.testing.assert_array_equal(better[1][1], seen[1][1])
    assert result.record["best_step"] == 10 and result.record["steps_done"] == 30
    assert result.record["validation"] == {"step": 10, "loss": 1.0}
    np.testing.assert_array_equal(result.expert.weight, seen[1][1])
    np.testing.assert_array_equal(result.last.weight, seen[5][1])


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, train_set, uninterrupted):
    def killed_here(expert):
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path, train_set, evaluate=killed_here, eval_every=30)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    assert newest.name == "step_00000020"
    (newest / "arrays" / "manifest.ocdbt").unlink(missing_ok=True)
    (newest / "integrity.json").write_text("{")
    lines = []
    run(tmp_path, train_set, eval_every=30, log=lines.append)
    assert lines[0] == "continuing after step 10 of 30"
    assert loss_column(tmp_path) == loss_column(uninterrupted[0])


def test_only_damaged_checkpoints_are_an_error(tmp_path, train_set):
    run(tmp_path, train_set)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "integrity.json").write_text("{")
    with pytest.raises(ValueError, match="step_00000030 is damaged"):
        run(tmp_path, train_set)
    assert len(loss_column(tmp_path)) == 30


def test_workdir_of_another_run_is_refused(uninterrupted, train_set):
    workdir, _ = uninterrupted
    with pytest.raises(
        ValueError, match="holds another run, which differs in batch_size, seed; choose another"
    ):
        run(workdir, train_set, seed=2, batch_size=8)
    assert len(loss_column(workdir)) == 30


def test_loss_that_is_not_finite_stops_the_run(tmp_path, train_set):
    broken = make_optimizer(learning_rate=1e30, steps=30)
    with pytest.raises(ValueError, match="the loss must stay finite, at step 2 it was not; lower"):
        run(tmp_path, train_set, optimizer=broken)


def test_unknown_monitored_figure_is_refused(tmp_path, train_set):
    with pytest.raises(ValueError, match="monitor must be one of the evaluated figures loss, diffusion_bpd"):
        run(tmp_path, train_set, monitor="bpd", eval_every=1)


# --- recipes -----------------------------------------------------------------------------------------


def tiny(kind):
    common = {"levels": 17, "shape": (8, 8, 1), "width": 8, "dropout": 0.1}
    if kind == "vdm":
        return recipes.vdm_description(depth=1, fourier=(2, 3), **common)
    return recipes.edm_description(channel_mult=(1,), num_blocks=1, attn_resolutions=(), **common)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vdm", "edm"])
def test_recipe_trains_and_its_checkpoint_is_the_best_expert(tmp_path, train_set, kind):
    result = recipes.train_expert(
        tiny(kind),
        recipes.Recipe(steps=6, batch_size=16, learning_rate=1e-3),
        train_set,
        train_set,
        workdir=tmp_path / "run",
        export=tmp_path / "shipped",
        command="python main.py",
        log=lambda line: None,
        save_every=3,
        eval_every=3,
    )
    z, gamma = jax.random.normal(KEY, (3, 8, 8, 1)), jnp.array([-6.0, 0.0, 4.0])
    for path in (tmp_path / "run" / "expert", tmp_path / "shipped"):
        loaded = io.load_expert(path)
        np.testing.assert_array_equal(loaded.eps_hat(z, gamma), result.expert.eps_hat(z, gamma))
        record = checkpoint.load_metadata(path)
        assert record["command"] == "python main.py"
        assert record["validation"]["loss"] > 0
        assert loaded.gamma_range[0] < -6.9


def test_recipe_refuses_images_that_do_not_fit(tmp_path, train_set):
    description = {**tiny("vdm"), "shape": [16, 16, 1]}
    with pytest.raises(ValueError, match=r"images must have the shape \[B, 16, 16, 1\], got \[60, 8, 8, 1\]"):
        recipes.train_expert(description, recipes.Recipe(1, 1, 1e-3), train_set, train_set, workdir=tmp_path)
