"""Training a gated mixture: objective against closed forms, parts, schedule, resume, devices."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmerge.data import digits
from jaxmerge.gate.gated import Gated
from jaxmerge.gate.measure import measure
from jaxmerge.gate.network import FixedGate
from jaxmerge.noise import PixelScale
from jaxmerge.training import gate_objective, gate_parts, gate_recipe, gate_step
from jaxmerge.training.gate_objective import Batch, Penalties
from jaxmerge.training.optimizer import adamw
from jaxmerge.training.tables import read
from tests import toys
from tests.gate_on_devices import BATCH, BIAS_RATE, CLIP, COUNT, STEPS, TRAININGS, members, mixture

ROOT = pathlib.Path(__file__).parent.parent
SCALE = PixelScale(17)
KEY = jax.random.key(3)
TRAIN, VALIDATION = digits.load("train").take(64), digits.load("validation").take(20)


def batch(size=32):
    return Batch(jnp.asarray(TRAIN.images[:size]), jnp.arange(size), members(TRAIN)[:size].astype(np.float32))


@jax.jit
def plain_loss(gated):
    return gate_objective.mixture_loss(gated, batch(), KEY, total=32, scale=SCALE, train=False)


# --- objective ---------------------------------------------------------------------------------------


def zero_and_one(weights):
    """eps_hat = 0 and eps_hat = z, both without the level's part, mixed in fixed proportions."""
    experts = [toys.Recorder(0.0), toys.Recorder(1.0)]
    return Gated(experts, FixedGate.of_weights(weights))


def test_the_loss_of_a_fixed_gate_is_nll_plus_its_penalties_in_closed_form():
    weights = np.array([0.7, 0.3])
    loss, figures = plain_loss(zero_and_one(weights))
    load = 2 * (0.2**2 + 0.2**2)
    entropy = -np.sum(weights * np.log(weights))
    assert float(figures["load"]) == pytest.approx(load, rel=1e-5)
    assert float(figures["entropy"]) == pytest.approx(entropy, rel=1e-5)
    assert float(loss) == pytest.approx(float(figures["nll"]) + 0.1 * load - 0.01 * entropy, rel=1e-6)
    np.testing.assert_allclose(figures["usage"], weights, atol=1e-6)
    np.testing.assert_allclose(
        figures["align"], -0.5 * np.log(weights).sum(), rtol=1e-5
    )  # labels alternate evenly
    # One expert alone has its own error.
    _, alone = plain_loss(zero_and_one(np.array([1.0, 0.0])))
    assert float(alone["nll"]) == pytest.approx(float(figures["expert"][0]), rel=1e-5)


def test_experts_are_judged_over_the_levels_at_which_they_answer():
    experts = [toys.Recorder(0.4, gamma_range=toys.LOW), toys.Recorder(0.9, gamma_range=toys.HIGH)]
    _, figures = plain_loss(Gated(experts, FixedGate(jnp.zeros(2))))
    alone = [plain_loss(Gated([e], FixedGate(jnp.zeros(1))))[1]["nll"] for e in experts]
    spans = [e.gamma_range[1] - e.gamma_range[0] for e in experts]
    whole = toys.MERGED[1] - toys.MERGED[0]
    # Their own range's bound, rescaled to the whole range; 32 noise draws of 64 pixels each.
    for k in range(2):
        assert float(figures["expert"][k]) == pytest.approx(float(alone[k]) * whole / spans[k], rel=0.15)


def test_alignment_leaves_out_slices_whose_experts_do_not_answer():
    # Half of the images belong to an expert that answers below -7 only, half to one that always does.
    experts = [toys.Recorder(0.4, gamma_range=(-8.0, -7.0)), toys.Recorder(0.9, gamma_range=(-8.0, 9.0))]
    _, figures = plain_loss(Gated(experts, FixedGate(jnp.zeros(2))))
    # Both answer at 2 of 32 levels, where the weights are even; elsewhere the only one has all of them.
    assert float(figures["align"]) == pytest.approx(2 / 32 * np.log(2), rel=1e-5)


def test_figures_of_a_validation_tell_noise_levels_apart():
    # Below -6 the first answers alone, above 3 the second; between them they share evenly.
    experts = [toys.Recorder(0.4, gamma_range=(-13.0, 3.0)), toys.Recorder(0.9, gamma_range=(-6.0, 9.0))]
    gated = Gated(experts, FixedGate(jnp.zeros(2)))
    measured = measure(gated, VALIDATION.images, key=KEY, repeats=3, scale=SCALE)
    found = gate_recipe.figures_of(measured)
    for part, share in {"-9_to_-6": 1.0, "-6_to_-3": 0.5, "0_to_3": 0.5, "3_to_9": 0.0}.items():
        assert found[f"usage_0_gamma_{part}"] == pytest.approx(share, abs=1e-6)
        assert found[f"usage_1_gamma_{part}"] == pytest.approx(1 - share, abs=1e-6)
        effective = 2 if share == 0.5 else 1
        assert found[f"effective_experts_gamma_{part}"] == pytest.approx(effective, rel=1e-5)
        assert found[f"entropy_gamma_{part}"] == pytest.approx(np.log(effective), abs=1e-5)


def test_shares_of_a_choice_differ_from_the_weights():
    _, figures = plain_loss(
        Gated(zero_and_one([0.7, 0.3]).experts, FixedGate.of_weights([0.7, 0.3]), top_k=1)
    )
    np.testing.assert_allclose(figures["usage"], [0.7, 0.3], atol=1e-6)
    np.testing.assert_allclose(figures["share"], [1, 0])


# --- batches -----------------------------------------------------------------------------------------


def batches(data, **changes):
    return gate_step.batches(data, members(data), **(dict(seed=1, size=8, steps=12, warm_steps=8) | changes))


@pytest.mark.parametrize("size", [7, 8])
def test_warm_batches_take_turns_between_the_slices_and_show_all_of_their_images(size):
    batch = batches(TRAIN, size=size)
    seen = []
    for step in range(8):
        warm = batch(step)
        np.testing.assert_array_equal(warm.members.argmax(1), np.arange(8) % COUNT)
        np.testing.assert_array_equal(warm.rows, np.arange(8))
        seen += [warm.images[0::2]]
    found = {image.tobytes() for image in np.concatenate(seen)}
    assert found == {image.tobytes() for image in TRAIN.images[members(TRAIN)[:, 0]]}
    assert len(batch(8).images) == size


def test_images_on_disk_are_read_ahead_and_are_those_of_a_set_in_memory():
    class OnDisk:
        shape, read, __len__ = TRAIN.source.shape, TRAIN.source.read, TRAIN.source.__len__

    stored = dataclasses.replace(TRAIN, source=OnDisk())
    ahead, plain = batches(stored), batches(TRAIN)
    # In both phases, and after a start in the middle.
    for step in (*range(6, 12), 3, 4):
        for one, other in zip(ahead(step), plain(step), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_slice_without_images_is_refused():
    with pytest.raises(ValueError, match="slice 1 has no training images"):
        gate_step.places_of_slices(np.array([[True, False]] * 4))


# --- the recipe --------------------------------------------------------------------------------------


def train(workdir, gated=None, **changes):
    arguments = dict(
        steps=12,
        batch_size=BATCH,
        learning_rate=0.05,
        save_every=5,
        eval_every=6,
        repeats=2,
        seed=1,
        log=lambda line: None,
    )
    return gate_recipe.train_gated(
        gated or mixture(), TRAIN, VALIDATION, workdir=workdir, **(arguments | changes)
    )


class Killed(Exception):
    pass


FIXED = zero_and_one([0.6, 0.4])
TWO_PHASES = dict(
    parts="all", members=members(TRAIN), validation_members=members(VALIDATION), warm_fraction=0.5
)


def killed_here(done, gated):
    raise Killed


def assert_same_run(first, second, workdir, other):
    assert read(other / "losses.csv") == read(workdir / "losses.csv")
    for a, b in zip(jax.tree.leaves(second.gated), jax.tree.leaves(first.gated), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_killed_run_of_the_gate_resumes_with_the_same_losses(tmp_path):
    whole = train(tmp_path / "whole", FIXED)
    with pytest.raises(Killed):
        train(tmp_path / "killed", FIXED, on_eval=killed_here)
    assert len(read(tmp_path / "killed" / "losses.csv")) == 6  # the last checkpoint is from step 5
    assert_same_run(whole, train(tmp_path / "killed", FIXED), tmp_path / "whole", tmp_path / "killed")
    assert whole.record == json.loads(json.dumps(whole.record)) and whole.record["parts"] == "gate"


@pytest.mark.slow
def test_two_phases_train_experts_then_all_and_resume_with_the_same_losses(tmp_path):
    seen, rows = [], {"training": [], "validation": []}

    def after_the_warm_up(done, gated):
        # Copies: the next step gives its state's buffers up.
        seen.append(jax.tree.map(np.asarray, gated))

    def keep(kind, new):
        rows[kind] += new

    whole = train(tmp_path / "whole", on_eval=after_the_warm_up, on_rows=keep, **TWO_PHASES)
    slope = [[float(e.slope) for e in g.experts] for g in (mixture(), *seen)]
    assert slope[0] != slope[1] != slope[2]
    before, warm, last = (np.asarray(g.gate.dense1.kernel[...]) for g in (mixture(), *seen))
    np.testing.assert_allclose(warm, before, atol=1e-6)  # without alignment, phase 1 leaves the gate alone
    assert np.abs(last - before).max() > 1e-3
    losses = read(tmp_path / "whole" / "losses.csv")
    assert [float(row["load"]) > 0 for row in losses] == [False] * 6 + [True] * 6
    assert len(rows["training"]) == 12 and rows["training"][3]["nll"] == float(losses[3]["nll"])
    validation = read(tmp_path / "whole" / "validation.csv")
    assert [{name: str(value) for name, value in row.items()} for row in rows["validation"]] == validation
    assert {"diffusion_bpd", "entropy", "usage_1", "expert_0", "accuracy_0", "slice_1"} <= set(validation[0])
    assert whole.record["warm_fraction"] == 0.5
    with pytest.raises(Killed):
        train(tmp_path / "killed", on_eval=killed_here, **TWO_PHASES)
    assert_same_run(whole, train(tmp_path / "killed", **TWO_PHASES), tmp_path / "whole", tmp_path / "killed")


def test_frozen_experts_stay_as_they_are_and_only_the_gate_is_stored(tmp_path):
    result = train(tmp_path, FIXED, steps=4)
    assert [float(e.slope) for e in result.last.experts] == [0, 1]
    assert np.abs(result.last.gate.logits - FIXED.gate.logits).max() > 1e-3
    assert not list((tmp_path / "checkpoints").rglob("*slope*"))
    assert result.last.bias.tolist() == [0, 0]


def test_experts_and_gate_have_learning_rates_of_their_own(tmp_path):
    result = train(
        tmp_path, FIXED, parts="all", steps=1, eval_every=1, learning_rate=0.05, experts_learning_rate=0.002
    )
    # Adam's first update is the learning rate whatever the gradient; nine tenths of it are in the average.
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), result.last, FIXED)
    np.testing.assert_allclose(moved.gate.logits, 0.9 * 0.05, rtol=1e-3)
    np.testing.assert_allclose([e.slope for e in moved.experts], 0.9 * 0.002, rtol=1e-3)


def learning(gate_from):
    """A gate's Adam of 0.05 constant steps, the experts' of 0.002, both moments' memory of one step."""
    common = dict(steps=9, schedule="constant", b1=0.0, b2=0.0)
    gate, experts = (adamw(learning_rate=rate, **common) for rate in (0.05, 0.002))
    return gate_parts.optimizer_of(gate, experts, clip=1e9, gate_from=gate_from)


def moves(optimizer, trained, count):
    """Updates of the gate and of the experts in successive steps with a constant gradient of ones."""
    trained = jax.tree.map(jnp.asarray, trained)
    grads, state = jax.tree.map(jnp.ones_like, trained), optimizer.init(trained)
    for _ in range(count):
        updates, state = optimizer.update(grads, state, trained)
        yield [
            [float(jnp.ravel(u)[0]) for u in jax.tree.leaves(part)]
            for part in (updates.gate, updates.experts)
        ]


def test_a_gates_optimizer_starts_with_its_training():
    trained, _ = gate_parts.split(FIXED, "all")
    waited = list(moves(learning(gate_from=2), trained, 4))
    assert [gate for gate, _ in waited] == [[0.0], [0.0], pytest.approx([-0.05]), pytest.approx([-0.05])]
    assert all(experts == pytest.approx([-0.002] * 2) for _, experts in waited)
    ((gate, experts),) = moves(learning(gate_from=0), trained, 1)
    assert (gate, experts) == (pytest.approx([-0.05]), pytest.approx([-0.002] * 2))


def test_a_gates_schedule_is_as_long_as_its_training():
    """Adam's moments and the rise of the learning rate begin after the warm-up."""
    trained, _ = gate_parts.split(FIXED, "all")
    how = dict(
        steps=9, learning_rate=0.05, experts_learning_rate=0.002, warmup_steps=2, clip=1e9, weight_decay=0.0
    )
    early, late = (
        [gate[0] for gate, _ in moves(gate_recipe._optimizer(gate_from=g, b2=0.99, **how), trained, 9)]
        for g in (0, 4)
    )
    assert late[:4] == [0.0] * 4 and late[4] == early[0] == 0.0  # the rise begins at zero
    assert late[5] == pytest.approx(-0.025, rel=1e-4)
    assert late[6] == pytest.approx(-0.05, rel=1e-4)
    assert abs(late[8]) < abs(late[7]) < 0.05


def test_the_clip_is_of_the_gradient_of_gate_and_experts_together():
    trained, _ = gate_parts.split(FIXED, "all")
    plain = optax.sgd(1.0)
    clipped = gate_parts.optimizer_of(plain, plain, clip=1.0)
    ((gate, experts),) = moves(clipped, trained, 1)
    ones = len(jax.tree.leaves(trained)) + FIXED.gate.logits.size - 1 + FIXED.bias.size - 1
    assert gate == experts[:1] == pytest.approx([-1 / ones**0.5])


def test_weights_of_the_warm_up_are_never_the_best(tmp_path):
    result = train(tmp_path, FIXED, **TWO_PHASES | dict(steps=8, eval_every=2, learning_rate=1.0))
    rows = read(tmp_path / "validation.csv")
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8]
    value = {int(row["step"]): float(row["diffusion_bpd"]) for row in rows}
    assert min(value, key=value.__getitem__) < 6  # what an unrestricted choice would take
    assert result.record["best_step"] == min((6, 8), key=value.__getitem__)


def test_balancing_bias_moves_against_the_share_of_the_choice(tmp_path):
    gated = zero_and_one([0.9, 0.1]).but(top_k=1)
    result = train(tmp_path, gated, steps=3, eval_every=3, learning_rate=1e-6, bias_rate=0.1)
    np.testing.assert_allclose(result.last.bias[0], -result.last.bias[1])
    trained = read(tmp_path / "losses.csv")
    assert [float(r["share_0"]) for r in trained] == [1, 1, 1]
    assert float(result.last.bias[0]) < -0.1  # an EMA of -0.1, -0.2, -0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(warm_fraction=1.0), "less than 1, got 1.0"),
        (dict(warm_fraction=0.5), "only the gate is trained"),
        (dict(warm_fraction=0.5, parts="all"), "need slices"),
        (dict(penalties=Penalties(align=1.0)), "need slices; pass members="),
        (dict(bias_rate=0.1), "a dense mixture has no choice"),
        (
            dict(members=np.zeros((3, 2))),
            r"members must have the shape \[64 images, 2 experts\], got \[3, 2\]",
        ),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **changes)


def test_a_collapsed_gate_is_reported_at_every_validation(tmp_path):
    lines = []
    train(tmp_path, zero_and_one([0.99, 0.01]), steps=4, eval_every=2, learning_rate=1e-6, log=lines.append)
    warnings = [line for line in lines if "the gate has collapsed: expert 0 has 99.0 % of the weight" in line]
    assert len(warnings) == 2


def test_a_folder_of_a_training_with_other_slices_experts_or_another_choice_is_refused(tmp_path):
    sparse = FIXED.but(top_k=1)
    options = dict(steps=2, eval_every=2, members=members(TRAIN))
    train(tmp_path, sparse, **options)
    others = {
        "capacity_factor": dict(gated=sparse.but(capacity_factor=0.5)),
        "capacity_factor, renormalise, top_k": dict(gated=FIXED),
        "frozen": dict(gated=sparse.but(experts=[toys.Recorder(0.0), toys.Recorder(0.5)])),
        "members": dict(members=~members(TRAIN)),
        "renormalise": dict(gated=sparse.but(renormalise=False)),
        "validation_members": dict(validation_members=members(VALIDATION)),
    }
    for what, changes in others.items():
        with pytest.raises(ValueError, match=f"holds another run, which differs in {what};"):
            train(tmp_path, **(dict(gated=sparse) | options | changes))


def test_a_validation_takes_as_many_images_at_once_as_asked_for(tmp_path, monkeypatch):
    taken = []

    def recorded(gated, images, *, batch_size, **how):
        taken.append(batch_size)
        return measure(gated, images, batch_size=batch_size, **how)

    monkeypatch.setattr(gate_recipe, "measure", recorded)
    whole, cut = (train(tmp_path / str(n), FIXED, steps=2, eval_batch_size=n).record for n in (20, 3))
    assert taken == [20, 3]
    assert cut["validation"] == pytest.approx(whole["validation"], rel=1e-4)


# --- devices -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_devices(tmp_path_factory):
    """Folders of `gate_on_devices` with 1, 2 and 8 devices."""
    root = tmp_path_factory.mktemp("devices")
    folders = [root / str(n) for n in (1, 2, 8)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.gate_on_devices", folder.name, str(folder)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    for process in started:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors
    return folders


def norm(found, start):
    parts = [v for name, v in found.items() if name.startswith(start) and name != "top 2/moved/bias"]
    return np.sqrt(sum(np.sum(v.astype(np.float64) ** 2) for v in parts))


@pytest.mark.slow
def test_steps_on_one_two_and_eight_devices_agree_and_clip_the_averaged_gradient(on_devices):
    one, *others = (dict(np.load(folder / "steps.npz")) for folder in on_devices)
    assert len(one) > 100 and np.abs(one["gate/figure/loss"]) > 0.1
    for name in STEPS:
        # The clip bites; what it leaves has its norm only where the mean over devices came first.
        assert norm(one, f"{name}/gradient") > 10 * CLIP
        for found in (one, *others):
            assert norm(found, f"{name}/moved") == pytest.approx(CLIP, rel=1e-4)
    assert np.abs(one["top 2/moved/bias"]).max() == np.float32(BIAS_RATE)
    for other in others:
        for name, value in one.items():
            limit = 2e-5 * (CLIP if "/moved/" in name else 1)
            np.testing.assert_allclose(other[name], value, rtol=2e-4, atol=limit, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "size"), TRAININGS)
def test_trainings_on_one_two_and_eight_devices_have_the_same_losses(on_devices, count, size):
    for table, rows in (("losses.csv", 4), ("validation.csv", 2)):
        one, *others = (read(folder / f"{count}_{size}" / table) for folder in on_devices)
        assert len(one) == rows
        for other in others:
            for a, b in zip(one, other, strict=True):
                assert a.keys() == b.keys()
                np.testing.assert_allclose(
                    [float(v) for v in b.values()], [float(v) for v in a.values()], rtol=1e-3, atol=1e-4
                )
