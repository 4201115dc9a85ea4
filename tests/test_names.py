"""Every array of the public checkpoints is one of our parameters or left out on purpose, there and back."""

import math
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from checkpoints_convert.names import edm, origins
from jaxmerge.experts.dhariwal_unet import DhariwalUNet
from jaxmerge.experts.song_unet import SongUNet
from tests import public

TINY = [
    *("edm_ddpmpp_tiny", "edm_ncsnpp_tiny", "vp_ddpmpp_tiny", "ve_ncsnpp_tiny"),
    *("edm_ddpmpp_cond_tiny", "edm_adm_cond_tiny"),
    *("vdm_torch_tiny", "vdm_torch_attn_tiny"),
    *("vdm_flax_tiny", "vdm_flax_format", "idode_vp_tiny", "idode_sp_tiny"),
]
FULL = ["edm_cifar10_uncond_vp_full", "vdm_torch_cifar10_full", "inception_full"]
NAME = "vdm_torch_tiny"


def filters(name: str) -> dict[str, np.ndarray]:
    """The resampling filters that a file of this network has; none outside the EDM family."""
    a = public.description(name).get("init_kwargs")
    if a is None:
        return {}
    return edm.resample_filters(
        a["img_resolution"],
        len(a["channel_mult"]),
        taps=a.get("resample_filter", (1, 1)),
        residual=a.get("encoder_type") == "residual",
    )


def schedule(weights):
    return {name: a for name, a in weights.items() if name.startswith("gamma")}


@pytest.mark.parametrize("name", TINY + FULL)
def test_names_and_shapes_are_exactly_those_of_the_public_file(name):
    wanted = {k: tuple(v) for k, v in public.description(name)["params"].items()}
    found = origins.source_shapes(*public.network(name))
    found |= {k: v.shape for k, v in filters(name).items()}
    assert found == {k: v for k, v in wanted.items() if not k.startswith("gamma")}


def size_of(net, origin, constants: dict) -> int:
    shapes = [*origins.source_shapes(net, origin).values(), *(a.shape for a in constants.values())]
    return sum(map(math.prod, shapes))


def test_public_networks_have_as_many_parameters_as_published():
    ncsnpp = dict(
        embedding_type="fourier", channel_mult_noise=2, encoder_type="residual", resample_filter=(1, 3, 3, 1)
    )
    net = nnx.eval_shape(lambda: SongUNet(augment_dim=9, **ncsnpp, rngs=nnx.Rngs(0)))
    filters = edm.resample_filters(32, 3, taps=(1, 3, 3, 1), residual=True)
    assert size_of(net, edm.song_unet(32, 3), filters) == 56_398_115
    net = nnx.eval_shape(lambda: DhariwalUNet(label_dim=1000, rngs=nnx.Rngs(0)))
    assert round(size_of(net, edm.dhariwal_unet(64, 4), edm.resample_filters(64, 4)) / 1e6, 1) == 295.9
    for name, count in {
        "edm_cifar10_uncond_vp_full": 55_733_923,
        "vdm_torch_cifar10_full": 30_577_667,
    }.items():
        assert sum(math.prod(v) for v in public.description(name)["params"].values()) == count


@pytest.mark.parametrize("name", TINY)
def test_there_and_back_is_exact_to_the_bit(name):
    net, origin = public.network(name)
    weights = public.weights(name)
    filled = origins.fill(net, weights, origin, left_out=public.left_out)
    assert len(origins.parameter_paths(net)) == len(jax.tree.leaves(filled))
    back = origins.unfill(filled, origin) | filters(name) | schedule(weights)
    assert back.keys() == weights.keys()
    for key, array in weights.items():
        assert back[key].dtype == np.float32 and back[key].flags["C_CONTIGUOUS"], key
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_every_difference_is_listed_by_name():
    net, origin = public.network(NAME)
    weights = public.weights(NAME)
    del weights["model.conv_in.bias"], weights["model.mid_attn_block.layers.1.weight"]
    weights |= {"model.extra": np.zeros(3), "gamma.w": np.zeros(())}
    weights["model.conv_in.weight"] = weights["model.conv_in.weight"][:, :3]
    weights["model.conv_out.0.bias"] = np.zeros(16, np.int64)
    with pytest.raises(ValueError, match="must be used exactly once each") as error:
        origins.fill(net, weights, origin)
    assert str(error.value).split(": ", 1)[1].split("; ") == [
        "left over gamma.w",
        "left over model.extra",
        "missing model.conv_in.bias",
        "missing model.mid_attn_block.layers.1.weight",
        "model.conv_in.weight needs the shape [16, 15, 3, 3], got [16, 3, 3, 3]",
        "model.conv_out.0.bias needs floating point numbers, got int64",
    ]


def test_what_is_left_out_on_purpose_is_no_difference():
    net, origin = public.network(NAME)
    weights = public.weights(NAME) | {"gamma.w": np.zeros((), np.int64)}
    origins.fill(net, weights, origin, left_out=public.left_out)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_weights_that_are_not_finite_in_float32_are_refused_by_name(value):
    net, origin = public.network(NAME)
    weights = {k: a.astype(np.float64) for k, a in public.weights(NAME).items()}
    weights["model.conv_in.bias"][3] = value
    weights["model.up_blocks.1.resnet_block.skip_conv.weight"][2, 1] = value
    both = "model.conv_in.bias, model.up_blocks.1.resnet_block.skip_conv.weight"
    with pytest.raises(ValueError, match=f"are not: {re.escape(both)};"):
        origins.fill(net, weights, origin, left_out=public.left_out)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_become_float32(dtype):
    net, origin = public.network(NAME)
    weights = {k: a.astype(dtype) for k, a in public.weights(NAME).items()}
    back = origins.unfill(origins.fill(net, weights, origin, left_out=public.left_out), origin)
    for key, array in back.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, weights[key].astype(np.float32))


@pytest.mark.parametrize("name", ["edm_adm_cond_tiny", "vdm_flax_tiny"])
def test_weights_are_copied_only_where_their_layout_changes(name):
    net, origin = public.network(name)
    weights = public.weights(name)
    filled = origins.fill(net, weights, origin, left_out=public.left_out)
    leaves = jax.tree.leaves(nnx.to_pure_dict(nnx.state(filled)))
    flat = dict(zip(origins.parameter_paths(net), leaves, strict=True))
    shared = {path for path, a in flat.items() if any(np.shares_memory(a, w) for w in weights.values())}
    assert all(a.flags["C_CONTIGUOUS"] for a in flat.values())
    changed = {path for path in flat if "qkv" in path}
    if name == "edm_adm_cond_tiny":
        changed |= {path for path in flat if path.endswith("kernel")}
    assert changed < flat.keys() and shared == flat.keys() - changed
