"""EDM pickles: SongUNet and DhariwalUNet in an EDM, VP or VE preconditioner.

The class name says which preconditioner, `_init_kwargs` of the network which architecture; where an
argument is absent, the original's default holds. Native ranges are in sigma_edm (Karras et al. 2022, Table 1):
EDM 0.002 to 80, VP sigma(1e-5) to sigma(1), VE 0.02 to 100.
"""

import functools
import math
from typing import Any

import numpy as np

from checkpoints_convert.kinds.source import Asked, Source, number, whole, wholes, word
from checkpoints_convert.names import edm as names
from checkpoints_convert.readers import Contents, Module, module_arrays
from checkpoints_convert.readers.faults import shown
from jaxmerge.experts.edm import BETA_D, BETA_MIN, SIGMA_DATA

_PRECONDITIONERS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve"}
_EPSILON_T = 1e-5
# The constants of a preconditioner that the experts here have built in.
_BUILT_IN = {
    "edm": {"sigma_data": SIGMA_DATA},
    "vp": {"beta_d": BETA_D, "beta_min": BETA_MIN, "M": 1000, "epsilon_t": _EPSILON_T},
    "ve": {},
}
_OUTER = ("img_channels", "model_type", "use_fp16")  # arguments of the preconditioner
_SHARED = (
    *("img_resolution", "in_channels", "out_channels", "label_dim", "augment_dim", "model_channels"),
    *("channel_mult", "channel_mult_emb", "num_blocks", "attn_resolutions", "dropout", "label_dropout"),
)
_SONG_ONLY = ("embedding_type", "channel_mult_noise", "encoder_type", "decoder_type", "resample_filter")


def recognised(contents: Contents) -> bool:
    """Whether contents are those of an EDM pickle."""
    return contents.container == "EDM pickle" and _network(contents) is not None


def _network(contents: Contents) -> Module | None:
    tree = contents.tree
    if isinstance(tree, dict):
        tree = tree.get("ema")
    return tree if isinstance(tree, Module) else None


def source(contents: Contents, kind: str, asked: Asked) -> Source:
    """The network of an EDM pickle.

    Raises:
        ValueError: another network or preconditioner than those above, settings of theirs that are not
            supported, or online weights, which these files do not have.
    """
    if asked.weights == "online":
        raise ValueError("an EDM pickle has EMA weights only; leave --weights out.")
    outer = _network(contents)
    preconditioner = _PRECONDITIONERS.get(outer.class_name)
    if preconditioner is None:
        raise ValueError(
            f"the pickle's network must be one of {', '.join(_PRECONDITIONERS)}, got {shown(outer.class_name)}; "
            "other preconditioners are not supported."
        )
    for name, value in _BUILT_IN[preconditioner].items():
        if not math.isclose(number(outer.state, name, value), value, rel_tol=1e-6):
            raise ValueError(
                f"{outer.class_name} must have {name} = {value:g}, got {shown(outer.state[name])}; other values are "
                "not supported."
            )
    inner = (outer.state.get("_modules") or {}).get("model")
    makers = {"SongUNet": _song, "DhariwalUNet": _dhariwal}
    if not isinstance(inner, Module) or inner.class_name not in makers:
        found = inner.class_name if isinstance(inner, Module) else "none"
        raise ValueError(
            f"the pickle's network must be a SongUNet or a DhariwalUNet, got {shown(found)}; other architectures "
            "are not supported."
        )
    settings = inner.state.get("_init_kwargs")
    if not isinstance(settings, dict):
        raise ValueError("the network's settings (_init_kwargs) must be a dictionary; the file is damaged.")
    arrays = module_arrays(outer)
    description = makers[inner.class_name](settings, len(arrays)) | {
        "sigma_range": _sigma_range(preconditioner, outer.state),
        "levels": 256,
        "preconditioner": preconditioner,
    }
    return from_description(kind, description, arrays)


def from_description(kind: str, description: dict[str, Any], arrays: dict[str, np.ndarray]) -> Source:
    """The source of a known architecture; checks the resampling filters, which are then left out.

    Raises:
        ValueError: a filter with other values than the architecture's.
    """
    architecture, resolution = description["architecture"], description["shape"][0]
    song = description.get("network", "song") == "song"
    levels = len(architecture["channel_mult"])
    taps = tuple(architecture.get("resample_filter", (1, 1))) if song else (1, 1)
    residual = song and architecture.get("encoder_type") == "residual"
    expected = names.resample_filters(resolution, levels, taps=taps, residual=residual)
    for name, array in arrays.items():
        if names.is_resample_filter(name) and not np.array_equal(array, expected.get(name)):
            raise ValueError(
                f"{shown(name)} must hold the filter {list(taps)} of the architecture, but it has other values or "
                "does not belong there; other resampling is not supported."
            )
    make = names.song_unet if song else names.dhariwal_unet
    note = f"left out on purpose: {len(expected)} resampling filters, which follow from the architecture"
    notes = () if not expected else (note,)
    return Source(
        kind,
        description,
        arrays,
        functools.partial(_origin, make, resolution, levels),
        names.is_resample_filter,
        "EMA",
        notes=notes,
    )


def _origin(make, resolution, levels, path):
    return make(resolution, levels)(path)


def _shared(settings: dict[str, Any], arrays: int, known: tuple[str, ...], defaults: dict) -> dict[str, Any]:
    unknown = sorted(set(map(str, settings)) - {*known, *_OUTER})
    if unknown:
        raise ValueError(
            f"the network has settings that are not known here: {shown(', '.join(unknown))}; this variant is not "
            "supported."
        )
    channels = whole(settings, "in_channels", 3, high=64)
    if whole(settings, "out_channels", channels, high=64) != channels:
        raise ValueError("the network must have as many output as input channels; others are not supported.")
    architecture = {
        "resolution": whole(settings, "img_resolution", 0, high=4096),
        "channels": channels,
        "model_channels": whole(settings, "model_channels", defaults["model_channels"], low=4),
        "channel_mult": wholes(settings, "channel_mult", defaults["channel_mult"]),
        "channel_mult_emb": whole(settings, "channel_mult_emb", 4, high=64),
        "num_blocks": whole(settings, "num_blocks", defaults["num_blocks"], high=256),
        "attn_resolutions": wholes(settings, "attn_resolutions", defaults["attn_resolutions"]),
        "dropout": number(settings, "dropout", 0.1),
        "label_dim": whole(settings, "label_dim", 0, low=0),
    }
    blocks = architecture["num_blocks"] * len(architecture["channel_mult"])
    if not 0 < blocks <= arrays or 0 in architecture["channel_mult"]:
        raise ValueError(
            f"the network's settings ask for {blocks} blocks, which do not fit the {arrays} arrays of the file; it "
            "is damaged."
        )
    return architecture


def _shape(architecture: dict[str, Any]) -> tuple[int, int, int]:
    return (architecture["resolution"], architecture["resolution"], architecture["channels"])


def _song(settings: dict[str, Any], arrays: int) -> dict[str, Any]:
    defaults = {
        "model_channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "num_blocks": 4,
        "attn_resolutions": (16,),
    }
    word(settings, "decoder_type", "standard", ("standard",))
    architecture = _shared(settings, arrays, (*_SHARED, *_SONG_ONLY), defaults) | {
        "augment_dim": whole(settings, "augment_dim", 0, low=0, high=1000),
        "embedding_type": word(settings, "embedding_type", "positional", ("positional", "fourier")),
        "channel_mult_noise": whole(settings, "channel_mult_noise", 1, high=64),
        "encoder_type": word(settings, "encoder_type", "standard", ("standard", "residual")),
        "resample_filter": wholes(settings, "resample_filter", (1, 1)),
    }
    if not sum(architecture["resample_filter"]) > 0:
        raise ValueError("the network's resample_filter must have a positive sum; the file is damaged.")
    return {"kind": "edm", "network": "song", "architecture": architecture, "shape": _shape(architecture)}


def _dhariwal(settings: dict[str, Any], arrays: int) -> dict[str, Any]:
    defaults = {
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "num_blocks": 3,
        "attn_resolutions": (32, 16, 8),
    }
    if whole(settings, "augment_dim", 0, low=0):
        raise ValueError(
            "a DhariwalUNet with augmentation labels is not supported (no public file has them)."
        )
    architecture = _shared(settings, arrays, _SHARED, defaults)
    return {"kind": "edm", "network": "dhariwal", "architecture": architecture, "shape": _shape(architecture)}


def _sigma_range(preconditioner: str, state: dict[str, Any]) -> tuple[float, float]:
    """The preconditioner's own limits where they are proper numbers (EDM's are 0 and infinity)."""

    def sigma(t):
        return math.sqrt(math.expm1(0.5 * BETA_D * t**2 + BETA_MIN * t))

    usual = {"edm": (0.002, 80.0), "vp": (sigma(_EPSILON_T), sigma(1.0)), "ve": (0.02, 100.0)}[preconditioner]
    low, high = state.get("sigma_min"), state.get("sigma_max")
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
    return (float(low), float(high)) if numbers and 1e-6 < low < high < 1e6 else usual
