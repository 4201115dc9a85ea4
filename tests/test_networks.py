"""The networks equal the public implementations on synthetic weights, noise level by noise level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import public

EDM_FAMILY = ["edm_ddpmpp_tiny", "edm_ncsnpp_tiny", "vp_ddpmpp_tiny", "ve_ncsnpp_tiny"]
FULL = pytest.mark.slow


def relative(a, b):
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))


@pytest.mark.parametrize("name", [*EDM_FAMILY, pytest.param("edm_cifar10_uncond_vp_full", marks=FULL)])
def test_edm_family_denoises_as_the_public_networks(name):
    expert, data = public.edm(name), public.arrays(name)
    call = jax.jit(lambda e, x, s: e.denoised(x, s))
    for x, s, want in zip(data["x"], data["sigma"], data["denoised"], strict=True):
        x = public.nhwc(x)
        got = call(expert, x, jnp.full(len(x), s, jnp.float32))
        assert relative(got, public.nhwc(want)) < 1e-5, s


def test_augmentation_labels_condition_the_network():
    expert, data = public.edm("edm_ddpmpp_tiny"), public.arrays("edm_ddpmpp_tiny")
    x = public.nhwc(data["x"][2])
    sigma = jnp.full(len(x), data["sigma"][2], jnp.float32)
    got = expert.denoised(x, sigma, augment=jnp.asarray(data["augment_labels"]))
    assert relative(got, public.nhwc(data["denoised_augmented"])) < 1e-5
    assert relative(expert.denoised(x, sigma), public.nhwc(data["denoised_augmented"])) > 1e-3


@pytest.mark.parametrize("name", EDM_FAMILY)
def test_edm_expert_noise_is_that_of_its_denoised_image(name):
    expert = public.edm(name)
    z = jax.random.normal(jax.random.key(0), (2, *expert.image_shape))
    for gamma in (-6.0, 0.0, 6.0):
        alpha, sigma = (np.sqrt(1 / (1 + np.exp(s * gamma))) for s in (1, -1))
        c = 256 / 255
        denoised = expert.denoised(c * z / alpha, jnp.full(2, c * np.exp(gamma / 2))) / c
        assert relative(expert.eps_hat(z, gamma), (z - alpha * denoised) / sigma) < 1e-4


@pytest.mark.parametrize(
    "name", ["vdm_torch_tiny", "vdm_torch_attn_tiny", pytest.param("vdm_torch_cifar10_full", marks=FULL)]
)
def test_torch_vdm_predicts_as_the_public_network(name):
    expert, data = public.vdm_torch(name), public.arrays(name)
    call = jax.jit(lambda e, z, g: e.eps_hat(z, g))
    for z, gamma, want in zip(data["z"], data["gamma"], data["eps_hat"], strict=True):
        got = call(expert, public.nhwc(z), jnp.float32(gamma))
        assert relative(got, public.nhwc(want)) < 1e-5, gamma


@pytest.mark.parametrize("name", ["vdm_flax_tiny", "idode_vp_tiny", "idode_sp_tiny"])
def test_flax_family_outputs_as_the_public_networks(name):
    expert, data = public.vdm_flax(name), public.arrays(name)
    call = jax.jit(lambda e, z, g: e.raw(z, g))
    for z, gamma, want in zip(data["z"], data["gamma"], data["raw_output"], strict=True):
        got = call(expert, jnp.asarray(z), jnp.full(len(z), gamma, jnp.float32))
        assert relative(got, want) < 2e-5, gamma
