"""The VDM family: PyTorch checkpoints, and the flax train states of google-research and of i-DODE.

Shapes say the architecture, except for what they cannot: heads, groups and the bounds of gamma. Of those the
flax codes have one value each; the PyTorch code's stand in the config.yaml that it writes beside the
checkpoint, and are its defaults without one.
"""

from typing import Any

import numpy as np

from checkpoints_convert.kinds.source import Asked, Source, number, training_step, whole
from checkpoints_convert.names import vdm as names
from checkpoints_convert.readers import Contents, flatten

BOUNDS = (-13.3, 5.0)
SIZE = 32
ONLY = "the only ones"
_NOT_TAKEN = "left out on purpose: the optimiser's state and the other set of weights, where there are any"
_TORCH_MARK = "model.conv_in.weight"
_READINGS = {
    "vdm-flax": ("noise", "VP"),
    "idode-vp": ("velocity", "VP"),
    "idode-sp": ("velocity", "SP"),
    "idode-noise": ("noise", "VP"),
}
_DEFAULTS = {"n_attention_heads": 1, "norm_groups": 32, "gamma_min": BOUNDS[0], "gamma_max": BOUNDS[1]}


def torch_recognised(contents: Contents) -> bool:
    """Whether contents are a checkpoint or a state dict of the PyTorch VDM."""
    return contents.container in ("torch zip", "torch legacy", "safetensors") and bool(_prefixes(contents))


def _flat(contents: Contents) -> dict[str, np.ndarray]:
    """All arrays but the optimiser's."""
    if not isinstance(contents.tree, dict):
        return {}
    return flatten({key: value for key, value in contents.tree.items() if key != "opt"}, ".")


def _prefixes(contents: Contents) -> list[str]:
    """Where in the flattened tree state dicts of the network begin, in the order of the file."""
    found = [name.removesuffix(_TORCH_MARK) for name in _flat(contents) if name.endswith(_TORCH_MARK)]
    return [prefix for prefix in found if prefix == "" or prefix.endswith(".")]


def _left_out(name: str) -> bool:
    return names.is_schedule(name) or name in ("initted", "step")


def torch_source(contents: Contents, kind: str, asked: Asked) -> Source:
    """The network of a PyTorch VDM checkpoint.

    Raises:
        ValueError: no such weights in the file, a config that contradicts it, or an unsupported network.
    """
    sets: dict[str, str] = {}
    for prefix in _prefixes(contents):
        averaged = prefix == "ema." or prefix.endswith("ema_model.")
        sets.setdefault("EMA" if averaged else "online" if prefix else ONLY, prefix)
    chosen, notes = _chosen(sets, asked.weights), []
    if chosen == ONLY:
        notes.append("the file does not say whether its weights are averaged (EMA)")
    prefix = sets[chosen]
    arrays = {n.removeprefix(prefix): a for n, a in _flat(contents).items() if n.startswith(prefix)}
    shapes, found = _torch_shapes(arrays), _settings(asked.config())
    _check_config(found, shapes)
    for name, default in _DEFAULTS.items():
        if name not in found:
            notes.append(f"{name} is taken to be {default}, as no config.yaml says otherwise")
    bounds = tuple(number(found, name, _DEFAULTS[name]) for name in ("gamma_min", "gamma_max"))
    heads, groups = (
        whole(found, name, _DEFAULTS[name], high=4096) for name in ("n_attention_heads", "norm_groups")
    )
    for name, parts in (("n_attention_heads", heads), ("norm_groups", groups)):
        if shapes["width"] % parts:
            raise ValueError(
                f"the network is {shapes['width']} channels wide, which {name} = {parts} does not divide; give the "
                "config.yaml of its training with --config."
            )
    description = {
        "kind": "vdm",
        "architecture": {
            **shapes,
            "fourier": (5, 6) if shapes["fourier"] else (),
            "heads": heads,
            "norm_groups": groups,
        },
        **_ranges(arrays, bounds, notes),
        **_images(shapes["channels"], asked.size, notes),
    }
    notes.append(_NOT_TAKEN)
    return Source(
        *(kind, description, arrays, names.torch_vdm, _left_out, chosen),
        step=training_step(contents.tree),
        notes=tuple(notes),
        other_weights={"EMA", "online"} <= set(sets),
        learned=any(n in ("gamma.w", "gamma.b") for n in arrays),
    )


def _settings(config: dict[str, Any] | None) -> dict[str, Any]:
    """The scalars of a config at any depth; the outermost of a name wins."""
    found: dict[str, Any] = {}
    waiting = [config or {}]
    for _ in range(1000):  # sections; YAML's references could make many of one
        if not waiting:
            break
        node = waiting.pop(0)
        waiting += [value for value in node.values() if isinstance(value, dict)]
        found = {str(k): v for k, v in node.items() if not isinstance(v, dict)} | found
    return found


def _check_config(found: dict[str, Any], shapes: dict[str, Any]) -> None:
    known = {
        "embedding_dim": shapes["width"],
        "n_blocks": shapes["depth"],
        "input_channels": shapes["channels"],
        "use_fourier_features": bool(shapes["fourier"]),
        "attention_everywhere": shapes["attention_everywhere"],
    }
    wrong = [
        f"{k} is {found[k]!r} there and {v!r} in the file" for k, v in known.items() if found.get(k, v) != v
    ]
    if wrong:
        raise ValueError(
            f"the config.yaml belongs to another checkpoint: {', '.join(wrong)}; give the right one."
        )


def _torch_shapes(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    first, last = arrays.get(_TORCH_MARK), arrays.get("model.conv_out.2.weight")
    return _shapes(
        None if first is None else first.shape[1::-1],
        None if last is None else last.shape[:1],
        _count(arrays, "model.down_blocks.", ".resnet_block.net1.0.weight"),
        any(n.startswith("model.down_blocks.0.attention_block.") for n in arrays),
    )


def _chosen(sets: dict[str, Any], weights: str | None) -> str:
    """Which of a file's sets of weights is meant."""
    chosen = ONLY if set(sets) == {ONLY} else "online" if weights == "online" else "EMA"
    if chosen not in sets:
        raise ValueError(f"the file has no {chosen} weights, only {', '.join(sets)}; set --weights.")
    return chosen


def _shapes(inside, outside, depth: int, attention: bool) -> dict[str, Any]:
    """Architecture arguments from the ends of the network: (in, width) of the first, (out) of the last."""
    if (
        inside is None
        or outside is None
        or len(inside) != 2
        or len(outside) != 1
        or 0 in (*inside, *outside, depth)
    ):
        raise ValueError(
            "a VDM must have a first and a last convolution and down blocks, but some are missing or empty; the "
            "file is damaged or of another architecture."
        )
    (given, width), (channels,) = inside, outside
    if given not in (channels, 5 * channels):
        raise ValueError(
            f"a VDM's first convolution must take {channels} channels, or {5 * channels} with two Fourier features, "
            f"got {given}; other features are not supported."
        )
    return {
        "channels": channels,
        "width": width,
        "depth": depth,
        "fourier": given != channels,
        "attention_everywhere": attention,
    }


def _count(arrays: dict[str, np.ndarray], before: str, after: str) -> int:
    count = 0
    while f"{before}{count}{after}" in arrays:
        count += 1
    return count


def _ranges(arrays: dict[str, np.ndarray], bounds: tuple[float, float], notes: list[str]) -> dict[str, Any]:
    """Bounds of the time input, and the range that was trained: that of the learned schedule if there is one."""
    if not bounds[0] < bounds[1]:
        raise ValueError(f"gamma_min must be below gamma_max, got {bounds[0]:g} and {bounds[1]:g}.")
    schedule = {n.replace("/", "."): a for n, a in arrays.items() if names.is_schedule(n)}
    learned = {n: a for n, a in schedule.items() if n in ("gamma.w", "gamma.b")}
    strange = sorted(set(schedule) - {"gamma.w", "gamma.b", "gamma.gamma_min", "gamma.gamma_max"})
    if strange or len(learned) == 1 or any(a.size != 1 for a in learned.values()):
        raise ValueError(
            "a learned noise schedule must be gamma(t) = b + |w| t, two numbers, but the file has "
            f"{', '.join(strange or sorted(schedule))}; networks as schedules are not supported."
        )
    if not learned:
        return {"bounds": bounds, "native_range": bounds}
    w, b = (float(learned[f"gamma.{n}"].reshape(()).astype(np.float64)) for n in "wb")
    native = (b, b + abs(w))
    if not (np.isfinite(native).all() and native[0] < native[1]):
        raise ValueError(f"the learned noise schedule must rise, got gamma from {native[0]} to {native[1]}.")
    notes.append(
        f"the noise schedule is learned: gamma(t) = {b:.6g} + {abs(w):.6g} t; it becomes the native range"
    )
    return {"bounds": bounds, "native_range": native}


def _images(channels: int, size: int | None, notes: list[str]) -> dict[str, Any]:
    size = size or SIZE
    notes.append(
        f"images are taken to be {size}x{size} (--size) with 256 grey levels, which no VDM file says"
    )
    return {"levels": 256, "shape": (size, size, channels)}


def flax_recognised(contents: Contents) -> bool:
    """Whether contents are a train state, or parameters, of google-research's VDM or i-DODE."""
    return contents.container == "flax msgpack" and any(
        "score_model" in s for s in _flax_sets(contents).values()
    )


def _flax_sets(contents: Contents) -> dict[str, dict]:
    tree = contents.tree
    if not isinstance(tree, dict):
        return {}
    found = {"EMA": tree.get("ema_params"), "online": tree.get("params"), ONLY: tree}
    return {
        name: value for name, value in found.items() if isinstance(value, dict) and "score_model" in value
    }


def flax_source(contents: Contents, kind: str, asked: Asked) -> Source:
    """The network of a flax train state.

    Raises:
        ValueError: no such weights in the file, or an unsupported network or schedule.
    """
    sets, notes = _flax_sets(contents), []
    chosen = _chosen(sets, asked.weights)
    arrays = flatten(sets[chosen], "/")
    prediction, schedule = _READINGS[kind]
    description = {
        "kind": "vdm",
        "architecture": _flax_architecture(arrays),
        **_ranges(arrays, BOUNDS, notes),
        "prediction": prediction,
        "schedule": schedule,
    }
    description |= _images(description["architecture"]["channels"], asked.size, notes)
    if asked.kind is None:
        notes.append(
            "files of i-DODE look the same, but their networks predict a velocity: if this is one, give --kind "
            "idode-vp or idode-sp"
        )
    notes.append(_NOT_TAKEN)
    readings = {
        f"--kind {other}": (("prediction", p), ("schedule", s))
        for other, (p, s) in _READINGS.items()
        if (p, s) != (prediction, schedule) and other != "idode-noise"
    }
    return Source(
        *(kind, description, arrays, names.flax_vdm, names.is_schedule),
        chosen,
        step=training_step(contents.tree),
        notes=tuple(notes),
        readings=readings,
        other_weights={"EMA", "online"} <= set(sets),
        learned=any(n in ("gamma/w", "gamma/b") for n in arrays),
    )


def _flax_architecture(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    first, last = (arrays.get(f"score_model/{name}/kernel") for name in ("conv_in", "conv_out"))
    shapes = _shapes(
        None if first is None else first.shape[2:],
        None if last is None else last.shape[3:],
        _count(arrays, "score_model/down.block_", "/conv1/kernel"),
        any(n.startswith("score_model/down.attn_0/") for n in arrays),
    )
    dense = arrays.get("score_model/dense0/kernel")
    if (
        dense is None
        or dense.ndim != 2
        or dense.shape[0] - shapes["width"] not in (0, 1)
        or shapes["width"] % 32
    ):
        raise ValueError(
            "a VDM of flax must have a dense layer dense0 of as many inputs as channels, or one more, and a multiple "
            "of 32 channels; the file is damaged or of another architecture."
        )
    return {
        **shapes,
        "fourier": (6, 7) if shapes["fourier"] else (),
        "fourier_order": "channel",
        "norm_epsilon": 1e-6,
        "pad_conditioning": dense.shape[0] - shapes["width"],
    }
