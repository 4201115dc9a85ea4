"""Merges: which expert runs, where the pieces lie, what nests and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge import merge, noise
from jaxmerge import probability_flow as flow
from jaxmerge.merge import Mixture, Switch
from jaxmerge.noise import PixelScale
from tests.toys import HIGH, LOW, MERGED, SHAPE, Calls, Recorder

Z = jnp.asarray(np.random.default_rng(0).normal(size=(3, *SHAPE)), jnp.float32)
CONTROLS = {
    "fixed": flow.FixedGrid(1.0),
    "multistep": flow.MultistepGrid(1.0),
    "per_image": flow.PerImage(1e-3, 1e-3, max_steps=64),
    "batch_coupled": flow.BatchCoupled(1e-3, 1e-3, max_steps=64),
}

ask = jax.jit(lambda expert, z, gamma: expert.eps_hat(z, gamma))
solve = jax.jit(flow.solve, static_argnames="rising")


def recording(eta=None, gamma=None):
    """A switch of two recorders and their record."""
    calls = Calls()
    low, high = Recorder(0.5, "low", calls, LOW), Recorder(0.9, "high", calls, HIGH)
    return Switch(low, high, eta, gamma=gamma), calls


def plain(slope, gamma_range=MERGED, **kwargs):
    return Recorder(slope, gamma_range=gamma_range, **kwargs)


# Which expert runs


@pytest.mark.parametrize(("gamma", "who"), [(-2.0, "low"), (0.0, "low"), (1e-3, "high"), (7.0, "high")])
def test_jitted_switch_evaluates_only_the_chosen_expert(gamma, who):
    merged, calls = recording(gamma=0.0)
    got = ask(merged, Z, gamma)
    assert calls.counts() == {who: 1}
    want = (0.5 if who == "low" else 0.9) * Z + 0.1 * gamma
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_scan_evaluates_only_the_chosen_expert_at_each_level():
    merged, calls = recording(gamma=0.5)
    levels = jnp.linspace(-7.0, 8.0, 16)

    @jax.jit
    def walk(expert, z):
        return jax.lax.scan(lambda z, gamma: (z - 0.01 * expert.eps_hat(z, gamma), None), z, levels)[0]

    walk(merged, Z).block_until_ready()
    assert sorted(calls.of("low")) == [g for g in levels.tolist() if g <= 0.5]
    assert sorted(calls.of("high")) == [g for g in levels.tolist() if g > 0.5]


def test_pmap_evaluates_only_the_chosen_expert():
    merged, calls = recording(gamma=0.0)
    sharded = jax.pmap(lambda expert, z, gamma: expert.eps_hat(z, gamma), in_axes=(None, 0, None))
    sharded(merged, Z[None], -1.0).block_until_ready()
    assert calls.counts() == {"low": 1}
    calls.clear()
    sharded(merged, Z[None], 1.0).block_until_ready()
    assert calls.counts() == {"high": 1}


def test_vmap_over_images_keeps_the_condition():
    merged, calls = recording(gamma=0.0)
    jax.jit(jax.vmap(lambda z: merged.eps_hat(z[None], jnp.float32(1.0))[0]))(Z).block_until_ready()
    assert set(calls.counts()) == {"high"}


@pytest.mark.parametrize("rising", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("name", CONTROLS)
def test_solves_evaluate_each_expert_on_its_own_closed_piece_only(name, rising):
    merged, calls = recording(gamma=0.5)
    start, end = MERGED if rising else MERGED[::-1]
    probes = flow.exact_probes(SHAPE)
    result = solve(merged, Z, start, end, rising=rising, control=CONTROLS[name], probes=probes)
    low, high = calls.of("low"), calls.of("high")
    assert np.all(result.ok)
    # Also at the threshold itself, where the switch would answer with the lower expert, each asks its own.
    assert min(low) == pytest.approx(MERGED[0]) and max(low) == pytest.approx(0.5)
    assert min(high) == pytest.approx(0.5) and max(high) == pytest.approx(MERGED[1])
    if name == "fixed":
        assert (len(low), len(high)) == (3 * 9 + 1, 3 * 9 + 1)
    if name != "per_image":  # there the callback runs for every image of the lockstep
        assert len(low) + len(high) == result.nfe[0]


@pytest.mark.parametrize("name", CONTROLS)
def test_solve_beyond_the_threshold_never_asks_the_other_expert(name):
    merged, calls = recording(gamma=0.0)
    result = solve(merged, Z, 1.0, 6.0, rising=True, control=CONTROLS[name])
    assert set(calls.counts()) == {"high"} and np.all(result.ok)
    calls.clear()
    result = solve(merged, Z, -5.0, 0.0, rising=True, control=CONTROLS[name])
    assert set(calls.counts()) == {"low"} and np.all(result.ok)


def test_solve_of_a_switch_is_two_solves():
    merged, _ = recording(gamma=0.5)
    control = CONTROLS["fixed"]
    whole = solve(merged, Z, *MERGED, rising=True, control=control)
    first = solve(merged.low, Z, MERGED[0], 0.5, rising=True, control=control)
    second = solve(merged.high, first.z, 0.5, MERGED[1], rising=True, control=control)
    np.testing.assert_allclose(whole.z, second.z, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(whole.nfe, first.nfe + second.nfe)


# Compilation


def test_changing_eta_never_recompiles():
    traces = []

    @jax.jit
    def score(expert, z):
        traces.append(1)
        return flow.solve(expert, z, *expert.gamma_range, rising=True, control=CONTROLS["fixed"]).z

    low, high = plain(0.5, LOW), plain(0.9, HIGH)
    ends = [score(Switch(low, high, eta=eta), Z) for eta in (0.1, 0.3, 0.7)]
    assert len(traces) == 1
    assert np.max(np.abs(ends[0] - ends[1])) > 1e-3  # and the threshold does matter


def test_eta_may_be_traced():
    low, high = plain(0.5, LOW), plain(0.9, HIGH)
    at = jax.jit(lambda eta, gamma: Switch(low, high, eta=eta).eps_hat(Z, gamma))
    for eta in (0.1, 0.7):
        gamma = noise.gamma_of_eta(0.4, *MERGED)
        np.testing.assert_allclose(at(eta, gamma), ask(Switch(low, high, eta), Z, gamma), rtol=1e-6)


# Pieces and nesting


def test_eta_is_a_position_in_the_merged_range():
    merged = Switch(plain(0.5, LOW), plain(0.9, HIGH), eta=0.25)
    assert merged.gamma_range == MERGED
    assert merged.gamma == pytest.approx(MERGED[0] + 0.25 * (MERGED[1] - MERGED[0]))
    assert merged.eta == pytest.approx(0.25)
    assert Switch(merged.low, merged.high, gamma=merged.gamma).eta == pytest.approx(0.25)


def test_eta_range_of_the_published_experts():
    vdm, edm = plain(1.0, (-13.3, 5.0)), plain(1.0, (-12.43, 8.764))
    np.testing.assert_allclose(merge.eta_range(vdm, edm), (0.0394307, 0.829405), atol=1e-6)


def nests():
    a, b, c = plain(0.2, LOW), plain(0.5, MERGED), plain(0.9, HIGH)
    inner = Switch(a, b, gamma=-3.0)
    mixed = Mixture([Switch(a, c, gamma=1.0), Switch(plain(0.1), plain(0.7), gamma=2.0)], [0.3, 0.7])
    return {
        "switch_of_switch_below": (Switch(inner, c, gamma=2.0), [-3.0, 2.0]),
        "switch_of_switch_above": (Switch(a, Switch(b, c, gamma=3.0), gamma=-1.0), [-1.0, 3.0]),
        "inner_threshold_beyond_the_cut": (Switch(Switch(a, b, gamma=3.0), c, gamma=1.0), [1.0, 1.0]),
        "switch_of_mixture": (Switch(Mixture([a, b], [0.4, 0.6]), c, gamma=0.0), [0.0]),
        "mixture_of_switches": (mixed, [1.0, 2.0]),
        "mixture_of_a_switch_and_a_smooth": (Mixture([b, Switch(a, c, gamma=1.0)], [0.5, 0.5]), [1.0]),
        "mixture_of_nested_switches": (
            Mixture([Switch(inner, c, gamma=2.0), b], [0.25, 0.75]),
            [-3.0, 2.0],
        ),
        "mixture_of_a_mixture_of_a_switch": (
            Mixture([Mixture([Switch(a, c, gamma=1.0), b], [0.5, 0.5]), b], [2.0, -1.0]),
            [1.0],
        ),
        "switch_of_mixture_of_switches": (Switch(mixed, c, gamma=1.5), [1.0, 1.5, 1.5]),
    }


@pytest.mark.parametrize("name", nests())
def test_nested_merges_have_ordered_pieces_that_answer_as_the_merge_does(name):
    merged, cuts = nests()[name]
    pieces = merged.pieces()
    low, high = merged.gamma_range
    np.testing.assert_allclose([p.gamma_low for p in pieces], [low, *cuts], atol=1e-6)
    np.testing.assert_allclose([p.gamma_high for p in pieces], [*cuts, high], atol=1e-6)
    for piece in pieces:
        for share in (0.02, 0.5, 0.98):
            gamma = float(piece.gamma_low + share * (piece.gamma_high - piece.gamma_low))
            if piece.gamma_low < gamma < piece.gamma_high:
                np.testing.assert_allclose(
                    ask(piece.expert, Z, gamma), ask(merged, Z, gamma), rtol=1e-6, atol=1e-6
                )


def test_mixture_of_switches_evaluates_one_expert_of_each():
    calls = Calls()
    names = {n: Recorder(0.1 * k, n, calls) for k, n in enumerate("abcd")}
    merged = Mixture(
        [Switch(names["a"], names["b"], gamma=1.0), Switch(names["c"], names["d"], gamma=2.0)], [0.5, 0.5]
    )
    solve(merged, Z, *MERGED, rising=True, control=CONTROLS["fixed"]).z.block_until_ready()
    for name, (low, high) in dict(
        a=(MERGED[0], 1), b=(1, MERGED[1]), c=(MERGED[0], 2), d=(2, MERGED[1])
    ).items():
        seen = calls.of(name)
        assert min(seen) == pytest.approx(low) and max(seen) == pytest.approx(high), name


# Mixtures


def test_one_hot_mixture_equals_its_expert():
    experts = [plain(0.2), plain(0.5), plain(0.9)]
    for k in range(3):
        mixed = Mixture(experts, np.eye(3)[k])
        np.testing.assert_allclose(ask(mixed, Z, 1.3), ask(experts[k], Z, 1.3), rtol=1e-6)


def test_mixture_weights_are_interpolated_in_gamma_and_constant_beyond_the_table():
    gammas, weights = np.array([-2.0, 1.0, 3.0]), np.array([[1.0, 0.0], [0.2, 0.6], [-0.5, 1.5]])
    mixed = Mixture([plain(0.2), plain(0.9)], weights, gammas)
    for gamma in (-5.0, -2.0, -0.5, 1.0, 2.5, 3.0, 8.0):
        w = [np.interp(gamma, gammas, weights[:, k]) for k in (0, 1)]
        want = (0.2 * w[0] + 0.9 * w[1]) * Z + 0.1 * gamma * sum(w)
        np.testing.assert_allclose(ask(mixed, Z, gamma), want, rtol=1e-5, atol=1e-6)


def test_mixture_takes_one_level_per_image():
    mixed = Mixture([plain(0.2), plain(0.9)], [[1.0, 0.0], [0.0, 1.0]], [-1.0, 1.0])
    levels = jnp.array([-1.0, 0.5, 4.0])
    together = ask(mixed, Z, levels)
    for i in range(3):
        np.testing.assert_allclose(together[i], ask(mixed, Z[i : i + 1], levels[i])[0], rtol=1e-6, atol=1e-7)


def test_mixture_range_is_what_its_experts_share():
    assert Mixture([plain(0.2, LOW), plain(0.9, HIGH)], [0.5, 0.5]).gamma_range == (HIGH[0], LOW[1])


# Refusals


def test_switch_takes_scalars_only():
    merged, _ = recording(gamma=0.0)
    with pytest.raises(ValueError, match=r"one scalar gamma, got the shape \[3\]"):
        merged.eps_hat(Z, jnp.zeros(3))


@pytest.mark.parametrize("eta", [-0.1, 0.04, 0.80, 1.0, float("nan")])
def test_eta_outside_either_range_is_refused_with_both_bounds(eta):
    with pytest.raises(ValueError, match=r"eta from 0\.0523 to 0\.7736"):
        Switch(plain(0.5, LOW), plain(0.9, HIGH), eta=eta)


def test_gamma_outside_is_refused_and_the_slack_is_not():
    low, high = plain(0.5, LOW), plain(0.9, HIGH)
    assert Switch(low, high, gamma=5.015).gamma == 5.015
    with pytest.raises(ValueError, match=r"gamma from -6\.9940 to 5\.0000\), got .*gamma = 5\.1000"):
        Switch(low, high, gamma=5.1)


@pytest.mark.parametrize("thresholds", [{}, {"eta": 0.2, "gamma": 0.0}])
def test_switch_needs_exactly_one_threshold(thresholds):
    with pytest.raises(ValueError, match="exactly one of eta and gamma"):
        Switch(plain(0.5), plain(0.9), **thresholds)


@pytest.mark.parametrize(
    "build", [lambda a, b: Switch(a, b, eta=0.3), lambda a, b: Mixture([a, b], [0.5, 0.5])]
)
def test_experts_for_different_images_are_refused(build):
    with pytest.raises(ValueError, match=r"same grey levels.*17.*256"):
        build(plain(0.5, pixel_scale=PixelScale(17)), plain(0.9, pixel_scale=PixelScale(256)))
    with pytest.raises(ValueError, match=r"same image shape.*\(2, 2, 1\).*\(8, 8, 3\)"):
        build(plain(0.5, image_shape=SHAPE), plain(0.9, image_shape=(8, 8, 3)))
    merged = build(plain(0.5, pixel_scale=PixelScale(17)), plain(0.9))
    assert merged.pixel_scale == PixelScale(17) and merged.image_shape is None


@pytest.mark.parametrize(
    ("weights", "gammas", "message"),
    [
        ([0.5, 0.3, 0.2], None, r"\[1 levels, 2 experts\], got \[1, 3\]"),
        ([[0.5, 0.5]], [0.0, 1.0], r"\[2 levels, 2 experts\], got \[1, 2\]"),
        ([[0.5, 0.5], [0.1, 0.9]], [1.0, 1.0], "increase strictly"),
        ([[0.5, 0.5], [0.1, 0.9]], [1.0, 0.0], "increase strictly"),
    ],
)
def test_mixture_tables_that_do_not_fit_are_refused(weights, gammas, message):
    with pytest.raises(ValueError, match=message):
        Mixture([plain(0.5), plain(0.9)], weights, gammas)


def test_mixture_of_experts_without_a_common_range_is_refused():
    with pytest.raises(ValueError, match="share a range of noise levels"):
        Mixture([plain(0.5, (-7.0, 0.0)), plain(0.9, (1.0, 5.0))], [0.5, 0.5])


def test_merges_are_pytrees_that_keep_their_kind():
    merged = Switch(plain(0.5, LOW), Mixture([plain(0.9), plain(0.1)], [0.5, 0.5]), eta=0.3)
    again = jax.tree.map(lambda leaf: leaf, merged)
    assert type(again) is Switch and type(again.high) is Mixture and again.gamma_range == merged.gamma_range
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(merged)]
    assert names == [
        ".low.slope",
        ".high.experts[0].slope",
        ".high.experts[1].slope",
        ".high.gammas",
        ".high.weights",
        ".gamma",
    ]
