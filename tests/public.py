"""Networks of the public implementations, rebuilt from the fixtures' descriptions and synthetic weights."""

import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from checkpoints_convert.names import edm as edm_names
from checkpoints_convert.names import inception as inception_names
from checkpoints_convert.names import vdm as vdm_names
from checkpoints_convert.names.origins import Origin, fill
from jaxmerge.experts.dhariwal_unet import DhariwalUNet
from jaxmerge.experts.edm import EDM
from jaxmerge.experts.song_unet import SongUNet
from jaxmerge.experts.vdm import VDM
from jaxmerge.experts.vdm_unet import VDMUNet
from jaxmerge.metrics.inception import Inception
from tests.synth import synth

# The learned schedules.
LEARNED = {"gamma.w": 18.31, "gamma.b": -13.32, "gamma/w": 18.31, "gamma/b": -13.32}
FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def description(name: str) -> dict:
    return json.loads((FIXTURES / f"{name}.json").read_text())


def arrays(name: str):
    return np.load(FIXTURES / f"{name}.npz")


def weights(name: str) -> dict[str, np.ndarray]:
    """The synthetic weights of a fixture, with the exceptions that fixtures/README.md lists."""
    params = description(name)["params"]
    flax = "/" in next(iter(params))
    out = {}
    for key, shape in params.items():
        if key.endswith("resample_filter"):
            taps = {2: (1, 1), 4: (1, 3, 3, 1)}[shape[-1]]
            out[key] = (np.outer(taps, taps) / sum(taps) ** 2).astype(np.float32)[None, None]
            continue
        fan_in = int(np.prod(shape[:-1])) if flax and len(shape) >= 2 else None
        w = synth(key, tuple(shape), fan_in)
        if key == "model.map_noise.freqs":
            w = w * np.float32(160)
        first = key in ("model.conv_in.weight", "score_model/conv_in/kernel")
        if first or ("enc." in key and key.endswith("_conv.weight")):
            w = w * np.float32(0.1)
        if name == "inception_full" and key.endswith(".conv.weight"):
            w = w * np.float32(np.sqrt(2))
        if key.endswith(".running_var"):
            w = np.abs(1 + w)
        if key in LEARNED:
            w = np.full(shape, LEARNED[key], np.float32)
        out[key] = w
    if name == "likelihood_idode_tiny":
        for leaf in ("kernel", "bias"):
            out[f"score_model/conv_out/{leaf}"] = out[f"score_model/conv_out/{leaf}"] * np.float32(0.02)
        out["score_model/conv_in/kernel"][:, :, 3:] = 0
    return out


def network(name: str) -> tuple[nnx.Module, Callable[[str], Origin]]:
    """A fixture's network without values, and where its parameters come from."""
    d = description(name)
    if "init_kwargs" in d:
        a = d["init_kwargs"]
        ours = {k: v for k, v in a.items() if k not in ("model_type", "decoder_type")}
        ours |= {"resolution": ours.pop("img_resolution"), "channels": ours.pop("img_channels")}
        make, origin = {
            "SongUNet": (SongUNet, edm_names.song_unet),
            "DhariwalUNet": (DhariwalUNet, edm_names.dhariwal_unet),
        }[a["model_type"]]
        origin = origin(a["img_resolution"], len(a["channel_mult"]))
    elif "config" not in d:
        make, ours, origin = Inception, {}, inception_names.origin
    elif "embedding_dim" in d["config"]:
        c, make, origin = d["config"], VDMUNet, vdm_names.torch_vdm
        ours = {
            "channels": c["input_channels"],
            "width": c["embedding_dim"],
            "depth": c["n_blocks"],
            "fourier": (5, 6) if c["use_fourier_features"] else (),
            "heads": c["n_attention_heads"],
            "attention_everywhere": c["attention_everywhere"],
            "norm_groups": c["norm_groups"],
        }
    else:
        c, make, origin = d["config"], VDMUNet, vdm_names.flax_vdm
        ours = {
            "width": c["sm_n_embd"],
            "depth": c["sm_n_layer"],
            "fourier": (6, 7),
            "fourier_order": "channel",
            "norm_epsilon": 1e-6,
            "pad_conditioning": 1,
            "attention_everywhere": c["with_attention"],
        }
    return nnx.eval_shape(lambda: make(**ours, rngs=nnx.Rngs(0))), origin


def left_out(name: str) -> bool:
    return edm_names.is_resample_filter(name) or vdm_names.is_schedule(name)


def filled(name: str) -> nnx.Module:
    """A fixture's network with its synthetic weights, on the device."""
    net, origin = network(name)
    return jax.device_put(fill(net, weights(name), origin, left_out=left_out))


def edm(name: str) -> EDM:
    d = description(name)
    a = d["init_kwargs"]
    kind = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve"}[d["class_name"]]
    size = a["img_resolution"]
    return EDM(filled(name), (0.002, 80.0), 256, (size, size, a["img_channels"]), kind)


def vdm_torch(name: str) -> VDM:
    c = description(name)["config"]
    native = (-13.3, 5.0) if c["noise_schedule"] == "fixed_linear" else (-13.32, -13.32 + 18.31)
    size = 32 if "full" in name else 8
    return VDM(filled(name), (-13.3, 5.0), native, 256, (size, size, c["input_channels"]))


def vdm_flax(name: str) -> VDM:
    c = description(name)["config"]
    prediction = "velocity" if c.get("velocity") else "noise"
    schedule = c.get("schedule", "VP")
    return VDM(filled(name), (-13.3, 5.0), (-13.3, 5.0), 256, (8, 8, 3), prediction, schedule)


def nhwc(a) -> jnp.ndarray:
    return jnp.asarray(np.moveaxis(np.asarray(a), -3, -1))
