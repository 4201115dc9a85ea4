"""Experts of ours under the public names: for PyTorch users, and back again bit for bit."""

import json
import os

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from checkpoints_convert.export import state_dict
from jaxmerge.experts import io
from jaxmerge.experts.analytic import Discrete
from jaxmerge.noise import PixelScale
from tests import conversion, public
from tests.conversion import run

FIXTURES = (
    *("edm_ddpmpp_tiny", "edm_ncsnpp_tiny", "ve_ncsnpp_tiny", "edm_ddpmpp_cond_tiny", "edm_adm_cond_tiny"),
    *("vdm_torch_tiny", "vdm_torch_attn_tiny"),
)
ROUND = ("expert", "native_range", "parameters", "weights", "training_step", "learned_schedule")


@pytest.mark.parametrize("name", ["digits_edm", "digits_vdm"])
def test_a_round_trip_is_bit_exact(name, tmp_path):
    file, dest = tmp_path / "sub" / "expert.safetensors", tmp_path / "back"
    assert run("--export", name, file) == 0
    assert os.listdir(file.parent) == ["expert.safetensors"]
    assert run(file, dest, "--no-check") == 0
    back, there = io.load_expert(dest), io.shipped(name)
    assert jax.tree.structure(back) == jax.tree.structure(there)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(there), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", FIXTURES)
def test_every_torch_network_comes_back_bit_for_bit(name, tmp_path):
    torch = name.startswith("vdm")
    path = (conversion.torch_checkpoint if torch else conversion.edm_pickle)(name, tmp_path)
    size = ("--size", 8) if torch else ()
    assert run(path, tmp_path / "a", "--no-check", *size) == 0
    assert run("--export", tmp_path / "a", tmp_path / "a.safetensors") == 0
    assert run(tmp_path / "a.safetensors", tmp_path / "b", "--no-check") == 0
    first, second = conversion.metadata(tmp_path / "a"), conversion.metadata(tmp_path / "b")
    assert {k: first[k] for k in ROUND} == {k: second[k] for k in ROUND}
    trees = [jax.tree.leaves_with_path(io.load_expert(tmp_path / name)) for name in "ab"]
    assert [k for k, _ in trees[0]] == [k for k, _ in trees[1]]
    for (key, ours), (_, theirs) in zip(*trees, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=str(key))


@pytest.mark.parametrize("name", FIXTURES)
def test_the_state_dict_is_the_public_one(name):
    expert = public.vdm_torch(name) if name.startswith("vdm") else public.edm(name)
    _, arrays, _ = state_dict(expert)
    public_arrays = public.weights(name)
    assert set(arrays) == set(public_arrays)
    for key, value in public_arrays.items():
        assert arrays[key].dtype == np.float32 and arrays[key].flags.c_contiguous
        assert arrays[key].shape == value.shape, key
        np.testing.assert_allclose(
            arrays[key], value, rtol=2e-7 if key.startswith("gamma") else 0, err_msg=key
        )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The shipped EDM as a safetensors file."""
    path = tmp_path_factory.mktemp("exported") / "e.safetensors"
    assert run("--export", "digits_edm", path) == 0
    return path


def test_the_file_tells_a_reader_of_safetensors_what_it_holds(exported):
    with safetensors.safe_open(exported, "np") as file:
        header, names = file.metadata(), set(file.keys())
    record = json.loads(header["jaxmerge"])
    assert header["format"] == "pt" and record["kind"] == "edm"
    assert record["description"]["architecture"]["model_channels"] == 24
    assert names == set(state_dict(io.shipped("digits_edm"))[1])


def test_the_origin_survives_the_way_out_and_back(tmp_path):
    path = conversion.edm_pickle("edm_ddpmpp_tiny", tmp_path)
    assert run(path, tmp_path / "a", "--name", "edm-cifar10-32x32-uncond-vp", "--no-check") == 0
    assert run("--export", tmp_path / "a", tmp_path / "a.safetensors") == 0
    assert run(tmp_path / "a.safetensors", tmp_path / "b", "--no-check") == 0
    first, second = conversion.metadata(tmp_path / "a"), conversion.metadata(tmp_path / "b")
    assert "CC BY-NC-SA" in first["licence"] and first["data_set"] == "CIFAR-10"
    for key in ("licence", "data_set", "weights", "expert", "native_range", "parameters"):
        assert first[key] == second[key], key


def test_a_learned_schedule_that_ended_where_it_began_is_exported(tmp_path):
    weights = public.weights("vdm_torch_attn_tiny")
    weights |= {"gamma.w": np.array(5 - -13.3, np.float32), "gamma.b": np.array(-13.3, np.float32)}
    expert = public.vdm_torch("vdm_torch_attn_tiny").replace(native_range=(-13.3, 5.0))
    assert "gamma.w" not in state_dict(expert)[1]
    arrays = state_dict(expert, learned=True)[1]
    for name in ("gamma.w", "gamma.b"):
        assert arrays[name].shape == () and arrays[name] == weights[name]
    path = conversion.torch_checkpoint("vdm_torch_attn_tiny", tmp_path)
    assert run(path, tmp_path / "a", "--size", 8, "--no-check") == 0
    assert conversion.metadata(tmp_path / "a")["learned_schedule"] is True


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--kind", "vdm-torch"), "exported edm"),
        (("--weights", "online"), "one set of weights only"),
        (("--size", 64), "images are 8x8"),
        (("--config", "x.yaml"), "--config is for a PyTorch VDM"),
        (("--kind", "nonsense"), "--kind must be one of"),
        (("--name", "vdm-cifar10"), "--kind or --name says vdm-flax"),
    ],
)
def test_what_contradicts_an_exported_file_is_refused(options, words, exported, tmp_path, capsys):
    assert run(exported, tmp_path / "out", *options) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_flax_flavour_is_refused_by_name(tmp_path, capsys):
    assert run(public.FIXTURES / "vdm_flax_format.flax", tmp_path / "f", "--size", 8, "--no-check") == 0
    capsys.readouterr()
    assert run("--export", tmp_path / "f", tmp_path / "f.safetensors") == 1
    error = capsys.readouterr().err
    assert "the Flax flavour of VDM has no torch twin" in error
    assert "ordered by channel" in error and "1e-06" in error
    assert os.listdir(tmp_path) == ["f"]


def test_velocity_networks_and_closed_forms_are_refused():
    with pytest.raises(ValueError, match=r"predicts a velocity in the SP schedule"):
        state_dict(public.vdm_flax("idode_sp_tiny"))
    images = np.zeros((2, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match="not a network"):
        state_dict(Discrete.from_images(images, np.ones(2), scale=PixelScale(17), gamma_range=(-5.0, 5.0)))


def test_other_fourier_features_are_pointed_out(tmp_path, capsys):
    assert run("--export", "digits_vdm", tmp_path / "v.safetensors") == 0
    assert "k = 2, 3 where the public code has 5, 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("expert", "file", "words"),
    [
        ("digits_edm", "there.safetensors", "already exists"),
        ("digits_edm", "x.pt", "end in .safetensors"),
        ("nowhere", "x.safetensors", "no checkpoint at"),
        ("digits_classifier", "x.safetensors", "no checkpoint at"),
    ],
)
def test_what_cannot_be_exported_is_refused(expert, file, words, tmp_path, capsys):
    (tmp_path / "there.safetensors").write_text("mine")
    assert run("--export", expert, tmp_path / file) == 1
    assert words in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["there.safetensors"]
    assert (tmp_path / "there.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record | {"kind": "vdm-torch"},
        lambda record: {"kind": "edm"},
        lambda record: record["description"]["architecture"].update(num_blocks=10**9),
        lambda record: record["description"]["architecture"].update(channel_mult=[1] * 1000),
        lambda record: record["description"]["architecture"].update(model_channels=10**12),
        lambda record: record["description"].update(shape=[8]),
        lambda record: record["description"].update(sigma_range=None),
        lambda record: "words",
    ],
)
def test_a_forged_header_is_refused_in_one_sentence(change, exported, tmp_path, capsys):
    with safetensors.safe_open(exported, "np") as file:
        record = json.loads(file.metadata()["jaxmerge"])
    changed = change(record)
    header = {"jaxmerge": json.dumps(record if changed is None else changed)}
    arrays = safetensors.numpy.load_file(exported)
    safetensors.numpy.save_file(arrays, tmp_path / "forged.safetensors", metadata=header)
    assert run(tmp_path / "forged.safetensors", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
