"""The command that makes experts of public files: exact, complete, and nothing is left behind by a failure."""

import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert import arrival
from jaxmerge.data.check import UNKNOWN
from jaxmerge.experts import io
from jaxmerge.metrics import inception
from tests import conversion, foreign_files, hostile, public
from tests.conversion import FLAX, PICKLE, TORCH, metadata, run
from tests.test_networks import denoise, relative


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The three public files, converted, one of them with the self-check: name -> checkpoint."""
    folder = tmp_path_factory.mktemp("converted")
    made = {}
    for name in (PICKLE, TORCH, FLAX):
        source, made[name] = conversion.official(name, folder / f"from {name}"), folder / name
        assert run(source, made[name], "--size", 8, *(() if name == TORCH else ("--no-check",))) == 0
    return made


def same_parameters(a, b) -> bool:
    a, b = (jax.tree.leaves_with_path(io.parameters(expert)) for expert in (a, b))
    return [k for k, _ in a] == [k for k, _ in b] and all(
        np.array_equal(x, y) for (_, x), (_, y) in zip(a, b, strict=True)
    )


# What is converted is what was published


def test_the_edm_pickle_denoises_as_the_public_network(converted):
    expert, data = io.load_expert(converted[PICKLE]), public.arrays("edm_ddpmpp_tiny")
    for x, s, want in zip(data["x"], data["sigma"], data["denoised"], strict=True):
        got = denoise(expert, public.nhwc(x), jnp.full(len(x), s, jnp.float32))
        assert relative(got, public.nhwc(want)) < 1e-5, s


def test_the_torch_checkpoint_predicts_as_the_public_network(converted):
    expert, data = io.load_expert(converted[TORCH]), public.arrays("vdm_torch_tiny")
    predict = jax.jit(lambda e, z, g: e.eps_hat(z, g))
    for z, gamma, want in zip(data["z"], data["gamma"], data["eps_hat"], strict=True):
        assert relative(predict(expert, public.nhwc(z), jnp.float32(gamma)), public.nhwc(want)) < 1e-5, gamma


def test_the_flax_state_predicts_as_the_public_network(converted):
    expert, data = io.load_expert(converted[FLAX]), public.arrays("vdm_flax_format")
    predict = jax.jit(lambda e, z, g: e.raw(z, g))
    for z, gamma, want in zip(data["z"], data["gamma"], data["raw_output"], strict=True):
        got = predict(expert, jnp.asarray(z), jnp.full(len(z), gamma, jnp.float32))
        assert relative(got, want) < 2e-5, gamma


# Their networks are compared with the public outputs in test_networks.py.
@pytest.mark.parametrize(
    "name",
    ["edm_ncsnpp_tiny", "edm_ddpmpp_cond_tiny", "edm_adm_cond_tiny", "vp_ddpmpp_tiny", "ve_ncsnpp_tiny"],
)
def test_every_edm_architecture_is_recognised_from_its_pickle(name, tmp_path):
    assert run(conversion.edm_pickle(name, tmp_path), tmp_path / "out", "--no-check") == 0
    expert, wanted = io.load_expert(tmp_path / "out"), public.edm(name)
    assert same_parameters(expert, wanted)
    assert (expert.preconditioner, expert.shape, expert.levels) == (wanted.preconditioner, wanted.shape, 256)
    assert expert.classes == (10 if "cond" in name else None)
    ranges = {"edm": (0.002, 80), "vp": (0.001, np.sqrt(np.expm1(0.5 * 19.9 + 0.1))), "ve": (0.02, 100)}
    np.testing.assert_allclose(expert.sigma_range, ranges[expert.preconditioner], rtol=1e-3)


@pytest.mark.parametrize("name", ["idode_vp_tiny", "idode_sp_tiny", "vdm_flax_tiny"])
def test_flax_states_are_read_as_the_kind_that_is_given(name, tmp_path):
    kind = {"idode_vp_tiny": "idode-vp", "idode_sp_tiny": "idode-sp", "vdm_flax_tiny": "vdm-flax"}[name]
    made = run(
        conversion.flax_state(name, tmp_path), tmp_path / "out", "--size", 8, "--kind", kind, "--no-check"
    )
    expert, wanted = io.load_expert(tmp_path / "out"), public.vdm_flax(name)
    assert made == 0 and same_parameters(expert, wanted)
    assert (expert.prediction, expert.schedule) == (wanted.prediction, wanted.schedule)
    learned = name == "vdm_flax_tiny"
    np.testing.assert_allclose(expert.native_range, (-13.32, 4.99) if learned else (-13.3, 5), rtol=1e-6)


def test_attention_everywhere_and_missing_fourier_features_are_seen_in_the_shapes(tmp_path):
    path = conversion.torch_checkpoint("vdm_torch_attn_tiny", tmp_path)
    assert run(path, tmp_path / "out", "--size", 8, "--no-check") == 0
    expert, wanted = io.load_expert(tmp_path / "out"), public.vdm_torch("vdm_torch_attn_tiny")
    assert same_parameters(expert, wanted)
    architecture = metadata(tmp_path / "out")["expert"]["architecture"]
    assert (
        architecture["attention_everywhere"] and architecture["fourier"] == [] and architecture["heads"] == 2
    )


def test_a_learned_schedule_gives_the_native_range_and_leaves_the_bounds(tmp_path, converted):
    path = conversion.torch_checkpoint("vdm_torch_attn_tiny", tmp_path)
    assert run(path, tmp_path / "out", "--size", 8, "--no-check") == 0
    for made in (tmp_path / "out", converted[FLAX]):
        expert = io.load_expert(made)
        np.testing.assert_allclose(expert.native_range, (-13.32, -13.32 + 18.31), rtol=1e-6)
        assert expert.bounds == (-13.3, 5.0)


def test_online_weights_are_taken_when_they_are_asked_for(tmp_path):
    path = conversion.torch_checkpoint("vdm_torch_tiny", tmp_path)
    assert run(path, tmp_path / "out", "--size", 8, "--no-check", "--weights", "online") == 0
    halved = jax.tree.map(lambda a: a / 2, io.parameters(public.vdm_torch("vdm_torch_tiny")))
    assert same_parameters(
        io.load_expert(tmp_path / "out"), io.with_parameters(public.vdm_torch("vdm_torch_tiny"), halved)
    )
    assert metadata(tmp_path / "out")["weights"] == "online"


@pytest.mark.slow
def test_inception_becomes_a_checkpoint_of_the_metrics(tmp_path):
    weights = public.weights("inception_full")
    counters = {
        k.replace("running_mean", "num_batches_tracked"): np.int64(1) for k in weights if "running_mean" in k
    }
    path = tmp_path / "inception.pth"
    path.write_bytes(foreign_files.zip_file(weights | {k: np.asarray(v) for k, v in counters.items()}))
    assert run(path, tmp_path / "out", "--no-check") == 0
    net = inception.load(tmp_path / "out")
    np.testing.assert_array_equal(net.fc.kernel[...], weights["fc.weight"].T)
    assert metadata(tmp_path / "out")["network"] == {"kind": "inception"}


# The record


@pytest.mark.parametrize(
    ("name", "kind", "coordinate", "low", "high", "step"),
    [
        (PICKLE, "edm", "sigma_edm", 0.002, 80, None),
        (TORCH, "vdm-torch", "gamma", -13.3, 5, 12345),
        (FLAX, "vdm-flax", "gamma", -13.32, 4.99, 10_000_000),
    ],
)
def test_the_record_says_what_was_converted_from_what(converted, name, kind, coordinate, low, high, step):
    record = metadata(converted[name])
    assert record["source"]["kind"] == kind and record["source"]["file"] == name
    assert record["source"]["sha256"] == hashlib.sha256((public.FIXTURES / name).read_bytes()).hexdigest()
    assert record["weights"] == "EMA" and record["training_step"] == step
    assert record["native_range"]["coordinate"] == coordinate
    np.testing.assert_allclose(
        [record["native_range"]["low"], record["native_range"]["high"]], [low, high], rtol=1e-6
    )
    assert record["pixel_scale"]["levels"] == 256
    expert = io.load_expert(converted[name])
    assert record["parameters"] == sum(a.size for a in jax.tree.leaves(io.parameters(expert)))
    assert {"data_set", "licence", "converter", "notes"} <= set(record)
    assert str(converted[name].parent) not in (converted[name] / "metadata.json").read_text()


def test_what_a_file_was_trained_on_is_recorded_where_it_is_said(converted, tmp_path):
    path = conversion.official(PICKLE, tmp_path)
    assert metadata(converted[PICKLE])["data_set"] == UNKNOWN
    assert run(path, tmp_path / "out", "--no-check", "--data-set", " imagenet32_old ") == 0
    assert metadata(tmp_path / "out")["data_set"] == "imagenet32_old"
    exported = tmp_path / "again.safetensors"
    assert run("--export", tmp_path / "out", exported) == 0
    assert run(exported, tmp_path / "again", "--no-check", "--data-set", "ImageNet 32x32, old version") == 0
    assert metadata(tmp_path / "again")["data_set"] == "imagenet32_old"


def test_a_data_set_that_contradicts_what_is_known_is_refused(tmp_path, capsys):
    path = conversion.flax_state("idode_vp_tiny", tmp_path)
    named = (path, tmp_path / "out", "--size", 8, "--name", "idode-cifar10-vp", "--no-check")
    assert run(*named, "--data-set", "imagenet32_old") == 1
    error = capsys.readouterr().err
    assert "trained on CIFAR-10, but --data-set says imagenet32_old; leave --data-set out" in error
    assert run(*named, "--data-set", " ") == 1
    assert "--data-set must name a data set" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(*named, "--data-set", "cifar10") == 0
    assert metadata(tmp_path / "out")["data_set"] == "CIFAR-10"


def test_inspection_prints_everything_and_writes_nothing(tmp_path, capsys, monkeypatch):
    path = conversion.official(TORCH, tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run("--inspect", path, "--size", 8) == 0
    shown = capsys.readouterr().out
    for words in ("vdm-torch", "width=16", "57 699", "step 12345", "EMA", "-13.3 to 5", "torch zip"):
        assert words in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_what_no_file_says_is_said(tmp_path, capsys):
    assert run("--inspect", public.FIXTURES / FLAX) == 0
    shown = capsys.readouterr().out
    assert "32x32 (--size)" in shown and "idode-vp" in shown and "left out on purpose" in shown


def test_synthetic_weights_look_untrained_to_the_self_check(converted):
    assert "untrained" in metadata(converted[TORCH])["self_check"]["warnings"][0]
    assert "self_check" not in metadata(converted[PICKLE])


def test_the_other_weights_are_read_as_the_kind_that_the_name_says(tmp_path, monkeypatch, capsys):
    path = conversion.flax_state("idode_vp_tiny", tmp_path, averaged=0.0)

    def measured(expert, readings=((),)):
        # A network that denoises well if it has weights and is read as the velocity network that it is.
        dead = not any(np.any(a) for a in jax.tree.leaves(io.parameters(expert)))
        good = expert.prediction == "velocity" and not dead
        return [
            tuple(arrival.Level(g, 1.0, (0.1 if good else 1.0) * 2**g, 2**g) for g in range(5))
            for _ in readings
        ]

    monkeypatch.setattr(arrival, "measure", measured)
    assert run(path, tmp_path / "out", "--size", 8, "--name", "idode-cifar10-vp") == 0
    error = capsys.readouterr().err
    assert "untrained" in error and "convert with --weights online" in error
    assert metadata(tmp_path / "out")["source"]["kind"] == "idode-vp"


# What was converted


@pytest.mark.slow
def test_a_checkpoint_loads_on_any_number_of_devices(converted, tmp_path):
    program = (
        "import sys, jax, numpy as np\n"
        "from jaxmerge import parallel\n"
        "from jaxmerge.experts import io\n"
        "expert = io.load_expert(sys.argv[1])\n"
        "assert parallel.device_count() == int(sys.argv[2])\n"
        "z = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)\n"
        "out = parallel.map_batches(lambda e, z: e.eps_hat(z, -1.0), (), (expert,), (z,), batch_size=1)\n"
        "np.save(sys.argv[3], out)\n"
    )
    found = []
    for devices in (1, 2, 8):
        out = tmp_path / f"{devices}.npy"
        env = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
        }
        conversion.python(program, str(converted[PICKLE]), str(devices), str(out), env=env)
        found.append(np.load(out))
    assert np.isfinite(found[0]).all() and found[0].std() > 0.1
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


# Refusals


def test_a_difference_lists_every_name(tmp_path, capsys):
    changes = {
        "model.map_layer0.bias": None,
        "model.map_layer1.weight": np.zeros((64, 63), np.float32),
        "model.surplus.weight": np.zeros(3, np.float32),
    }
    path = conversion.edm_pickle("edm_ddpmpp_tiny", tmp_path, **changes)
    assert run(path, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "missing model.map_layer0.bias" in error and "left over model.surplus.weight" in error
    assert "model.map_layer1.weight needs the shape [64, 64], got [64, 63]" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((PICKLE, "--kind", "vdm-flax"), "looks like edm"),
        ((PICKLE, "--kind", "edn"), "--kind must be one of edm, vdm-torch"),
        ((PICKLE, "--weights", "online"), "EMA weights only"),
        ((PICKLE, "--size", "64"), "images are 8x8"),
        ((PICKLE, "--config", "x.yaml"), "--config is for a PyTorch VDM"),
        ((TORCH,), "norm_groups = 32 does not divide"),
        (("torch_zip_mixed.pth",), "no known network"),
        (("missing.pkl",), "there is no such file"),
        ((".",), "got a folder"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(arguments, words, tmp_path, capsys):
    name, *options = arguments
    assert run(public.FIXTURES / name, tmp_path / "a" / "b", *options) == 1
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_config_beside_a_file_is_read_for_a_torch_vdm_only(tmp_path, capsys):
    for text in ("n_attention_heads: 7\n", "[not, settings]", "a: [", "\0"):
        (tmp_path / "config.yaml").write_text(text)
        path = conversion.edm_pickle("edm_ddpmpp_tiny", tmp_path)
        assert run("--inspect", path) == 0, text
    assert run("--inspect", path, "--config", tmp_path / "config.yaml") == 1
    assert "--config is for a PyTorch VDM, and this file is of the kind edm" in capsys.readouterr().err


def test_a_config_of_another_checkpoint_is_refused(tmp_path, capsys):
    path = conversion.torch_checkpoint("vdm_torch_tiny", tmp_path)
    conversion.write_config("vdm_torch_tiny", tmp_path, n_blocks=3)
    assert run(path, tmp_path / "out") == 1
    assert "n_blocks is 3 there and 2 in the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_blocks": 10**9}, "num_blocks must be a whole number from 1 to 256"),
        ({"num_blocks": 200}, "do not fit"),
        ({"channel_mult": [1] * 1000}, "short list"),
        ({"model_channels": "16"}, "model_channels must be a whole number"),
        ({"decoder_type": "skip"}, "decoder_type must be one of standard"),
        ({"new_trick": True}, "new_trick"),
        ({"img_resolution": 2**40}, "img_resolution"),
        ({"resample_filter": [1, 3, 3, 1]}, "filter"),
    ],
)
def test_settings_that_no_public_network_has_are_refused_at_once(settings, words, tmp_path, capsys):
    arguments = public.description("edm_ddpmpp_tiny")["init_kwargs"] | settings
    path = tmp_path / "x.pkl"
    path.write_bytes(foreign_files.edm_file("EDMPrecond", arguments, public.weights("edm_ddpmpp_tiny")))
    assert run(path, tmp_path / "out") == 1
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_other_preconditioners_are_refused_by_name(tmp_path, capsys):
    path = tmp_path / "x.pkl"
    arguments = public.description("edm_ddpmpp_tiny")["init_kwargs"]
    path.write_bytes(foreign_files.edm_file("iDDPMPrecond", arguments, public.weights("edm_ddpmpp_tiny")))
    assert run(path, tmp_path / "out") == 1 and "iDDPMPrecond" in capsys.readouterr().err


def test_hostile_files_leave_nothing_and_run_nothing_on_the_command_line(tmp_path):
    bad = [(name, data) for name, data, must_fail in hostile.inputs(seed=0) if must_fail]
    for i, (name, data) in enumerate(bad[:: len(bad) // 10][:10]):
        (tmp_path / "input.bin").write_bytes(data)
        done = conversion.run_apart("input.bin", f"a{i}/b/c", cwd=tmp_path)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, (
            name
        )
        assert os.listdir(tmp_path) == ["input.bin"], name


@pytest.mark.parametrize("arguments", [(), ("only",), ("--list", "a", "b"), ("--inspect", "a", "--list")])
def test_arguments_that_do_not_fit_together_are_refused(arguments, capsys):
    assert run(*arguments) == 1 and "give SOURCE and DEST" in capsys.readouterr().err
