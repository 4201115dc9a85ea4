"""Networks of the public implementations, rebuilt from the fixtures' descriptions and synthetic weights."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from checkpoints_convert import names
from jaxmerge.experts.edm import EDM
from jaxmerge.experts.song_unet import SongUNet
from jaxmerge.experts.vdm import VDM
from jaxmerge.experts.vdm_unet import VDMUNet
from tests.synth import synth

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def description(name: str) -> dict:
    return json.loads((FIXTURES / f"{name}.json").read_text())


def arrays(name: str):
    return np.load(FIXTURES / f"{name}.npz")


def weights(name: str) -> dict[str, np.ndarray]:
    """The synthetic weights of a fixture, with the exceptions that fixtures/README.md lists."""
    flax = "/" in next(iter(description(name)["params"]))
    out = {}
    for key, shape in description(name)["params"].items():
        if key.endswith("resample_filter"):
            continue
        fan_in = int(np.prod(shape[:-1])) if flax and len(shape) >= 2 else None
        w = synth(key, tuple(shape), fan_in)
        if key == "model.map_noise.freqs":
            w = w * np.float32(160)
        first = key in ("model.conv_in.weight", "score_model/conv_in/kernel")
        if first or ("enc." in key and key.endswith("_conv.weight")):
            w = w * np.float32(0.1)
        out[key] = w
    if name == "likelihood_idode_tiny":
        for leaf in ("kernel", "bias"):
            out[f"score_model/conv_out/{leaf}"] = out[f"score_model/conv_out/{leaf}"] * np.float32(0.02)
        out["score_model/conv_in/kernel"][:, :, 3:] = 0
    return out


def edm(name: str) -> EDM:
    d = description(name)
    a = d["init_kwargs"]
    keys = (
        "model_channels",
        "channel_mult",
        "num_blocks",
        "attn_resolutions",
        "dropout",
        "label_dim",
        "augment_dim",
        "embedding_type",
        "channel_mult_noise",
        "encoder_type",
        "resample_filter",
    )
    arguments = {k: a[k] for k in keys} | {"resolution": a["img_resolution"], "channels": a["img_channels"]}
    net = nnx.eval_shape(lambda: SongUNet(**arguments, rngs=nnx.Rngs(0)))
    origin = names.song_unet(a["img_resolution"], len(a["channel_mult"]))
    net = names.fill(net, weights(name), origin)
    kind = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve"}[d["class_name"]]
    size = a["img_resolution"]
    return EDM(jax.device_put(net), (0.002, 80.0), 256, (size, size, a["img_channels"]), kind)


def vdm_torch(name: str) -> VDM:
    c = description(name)["config"]
    net = nnx.eval_shape(
        lambda: VDMUNet(
            channels=c["input_channels"],
            width=c["embedding_dim"],
            depth=c["n_blocks"],
            fourier=(5, 6) if c["use_fourier_features"] else (),
            heads=c["n_attention_heads"],
            attention_everywhere=c["attention_everywhere"],
            norm_groups=c["norm_groups"],
            rngs=nnx.Rngs(0),
        )
    )
    net = names.fill(net, weights(name), names.torch_vdm, left_out=lambda n: n.startswith("gamma."))
    native = (-13.3, 5.0) if c["noise_schedule"] == "fixed_linear" else (-13.32, -13.32 + 18.31)
    size = 32 if "full" in name else 8
    return VDM(jax.device_put(net), (-13.3, 5.0), native, 256, (size, size, c["input_channels"]))


def vdm_flax(name: str) -> VDM:
    c = description(name)["config"]
    net = nnx.eval_shape(
        lambda: VDMUNet(
            width=c["sm_n_embd"],
            depth=c["sm_n_layer"],
            fourier=(6, 7),
            fourier_order="channel",
            norm_epsilon=1e-6,
            pad_conditioning=1,
            attention_everywhere=c["with_attention"],
            rngs=nnx.Rngs(0),
        )
    )
    net = names.fill(net, weights(name), names.flax_vdm, left_out=lambda n: n.startswith("gamma/"))
    prediction = "velocity" if c.get("velocity") else "noise"
    return VDM(
        jax.device_put(net), (-13.3, 5.0), (-13.3, 5.0), 256, (8, 8, 3), prediction, c.get("schedule", "VP")
    )


def nhwc(a) -> jnp.ndarray:
    return jnp.asarray(np.moveaxis(np.asarray(a), -3, -1))
