"""The networks equal the public implementations on synthetic weights, noise level by noise level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.experts import io
from jaxmerge.experts.dhariwal_unet import DhariwalUNet
from jaxmerge.experts.song_unet import SongUNet
from tests import public

UNCONDITIONAL = ["edm_ddpmpp_tiny", "edm_ncsnpp_tiny", "vp_ddpmpp_tiny", "ve_ncsnpp_tiny"]
CONDITIONAL = ["edm_ddpmpp_cond_tiny", "edm_adm_cond_tiny"]
FULL = pytest.mark.slow


denoise = jax.jit(lambda expert, x, sigma, augment=None: expert.denoised(x, sigma, augment=augment))
predict = jax.jit(lambda expert, z, gamma: expert.eps_hat(z, gamma))


def relative(a, b):
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))


@pytest.mark.parametrize("name", [*UNCONDITIONAL, pytest.param("edm_cifar10_uncond_vp_full", marks=FULL)])
def test_edm_family_denoises_as_the_public_networks(name):
    expert, data = public.edm(name), public.arrays(name)
    for x, s, want in zip(data["x"], data["sigma"], data["denoised"], strict=True):
        x = public.nhwc(x)
        got = denoise(expert, x, jnp.full(len(x), s, jnp.float32))
        assert relative(got, public.nhwc(want)) < 1e-5, s


@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_networks_denoise_as_the_public_ones(name):
    expert, data = public.edm(name).with_labels(public.arrays(name)["labels"]), public.arrays(name)
    for x, s, want in zip(data["x"], data["sigma"], data["denoised"], strict=True):
        x = public.nhwc(x)
        got = denoise(expert, x, jnp.full(len(x), s, jnp.float32))
        assert relative(got, public.nhwc(want)) < 1e-5, s


@pytest.mark.parametrize("name", ["edm_ddpmpp_tiny", "edm_ddpmpp_cond_tiny"])
def test_augmentation_labels_condition_the_network(name):
    expert, data = public.edm(name), public.arrays(name)
    if "labels" in data:
        expert = expert.with_labels(data["labels"])
    x = public.nhwc(data["x"][2])
    sigma = jnp.full(len(x), data["sigma"][2], jnp.float32)
    got = denoise(expert, x, sigma, jnp.asarray(data["augment_labels"]))
    assert relative(got, public.nhwc(data["denoised_augmented"])) < 1e-5
    assert relative(denoise(expert, x, sigma), public.nhwc(data["denoised_augmented"])) > 1e-3


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_edm_expert_noise_is_that_of_its_denoised_image(name):
    expert = public.edm(name)
    z = jax.random.normal(jax.random.key(0), (2, *expert.image_shape))
    for gamma in (-6.0, 0.0, 6.0):
        alpha, sigma = (np.sqrt(1 / (1 + np.exp(s * gamma))) for s in (1, -1))
        c = 256 / 255
        sigma_edm = jnp.full(2, c * np.exp(gamma / 2), jnp.float32)
        denoised = denoise(expert, c * z / alpha, sigma_edm) / c
        assert relative(predict(expert, z, gamma), (z - alpha * denoised) / sigma) < 1e-4


@pytest.mark.parametrize(
    "name", ["vdm_torch_tiny", "vdm_torch_attn_tiny", pytest.param("vdm_torch_cifar10_full", marks=FULL)]
)
def test_torch_vdm_predicts_as_the_public_network(name):
    expert, data = public.vdm_torch(name), public.arrays(name)
    for z, gamma, want in zip(data["z"], data["gamma"], data["eps_hat"], strict=True):
        got = predict(expert, public.nhwc(z), jnp.float32(gamma))
        assert relative(got, public.nhwc(want)) < 1e-5, gamma


@pytest.mark.parametrize("name", ["vdm_flax_tiny", "idode_vp_tiny", "idode_sp_tiny"])
def test_flax_family_outputs_as_the_public_networks(name):
    expert, data = public.vdm_flax(name), public.arrays(name)
    call = jax.jit(lambda e, z, g: e.raw(z, g))
    for z, gamma, want in zip(data["z"], data["gamma"], data["raw_output"], strict=True):
        got = call(expert, jnp.asarray(z), jnp.full(len(z), gamma, jnp.float32))
        assert relative(got, want) < 2e-5, gamma


def description_of(network: str) -> dict:
    architecture = {
        "resolution": 8,
        "model_channels": 64,
        "channel_mult": [1],
        "num_blocks": 1,
        "label_dim": 4,
    }
    named = {} if network == "song" else {"network": network}
    fields = {"kind": "edm", "levels": 256, "shape": [8, 8, 3], "sigma_range": [0.002, 80.0]}
    return fields | named | {"architecture": architecture}


@pytest.mark.parametrize(("network", "kind"), [("song", SongUNet), ("dhariwal", DhariwalUNet)])
def test_a_checkpoint_says_which_network_it_is_of(network, kind, tmp_path):
    expert = io.build(description_of(network))
    values = jax.tree.map(lambda a: np.full(a.shape, 0.5, a.dtype), io.parameters(expert))
    io.save_expert(tmp_path / "x", io.with_parameters(expert, values), {"expert": description_of(network)})
    loaded = io.load_expert(tmp_path / "x")
    assert type(loaded.net) is kind and loaded.classes == 4 and loaded.labels is None
    assert jax.tree.structure(loaded) == jax.tree.structure(expert)
    assert all(np.all(leaf == 0.5) for leaf in jax.tree.leaves(loaded))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "adm"}, r"kind 'edm' must be one of \['dhariwal', 'song'\], got 'adm'"),
        ({"kind": "vdm", "network": "song"}, r"kind 'vdm' must be one of \['vdm'\], got 'song'"),
        ({"network": "dhariwal", "architecture": {"encoder_type": "residual"}}, "encoder_type"),
    ],
)
def test_descriptions_that_fit_no_network_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        io.build(description_of("song") | changes)


def test_adm_refuses_what_its_heads_cannot_divide_and_augmentation_labels():
    with pytest.raises(ValueError, match="divides the 32 channels, got 0"):
        io.build(description_of("dhariwal") | {"architecture": {"model_channels": 32, "channel_mult": [1]}})
    adm, data = public.edm("edm_adm_cond_tiny"), public.arrays("edm_adm_cond_tiny")
    with pytest.raises(ValueError, match="takes no augmentation labels"):
        denoise(adm.with_labels(data["labels"]), jnp.zeros((2, 8, 8, 3)), jnp.ones(2), jnp.zeros((2, 9)))
