"""Names of the VDM family: the PyTorch re-implementation, google-research's Flax code and i-DODE's."""

from checkpoints_convert.names.origins import Origin, joined, same, torch

_TORCH_BLOCK = {
    "norm0": "net1.0",
    "conv0": "net1.2",
    "cond": "cond_proj",
    "norm1": "net2.0",
    "conv1": "net2.3",
    "skip": "skip_conv",
}
_TORCH_ATTENTION = {"norm": "layers.0", "qkv": "layers.1", "out": "layers.3"}
_TORCH_TOP = {
    "dense0": "embed_conditioning.0",
    "dense1": "embed_conditioning.2",
    "conv_in": "conv_in",
    "norm_out": "conv_out.0",
    "conv_out": "conv_out.2",
}
_FLAX_BLOCK = {
    "norm0": "GroupNorm_0",
    "conv0": "conv1",
    "cond": "cond_proj",
    "norm1": "GroupNorm_1",
    "conv1": "conv2",
    "skip": "nin_shortcut",
}


def torch_vdm(path: str) -> Origin:
    """The PyTorch VDM's array for a path of `VDMUNet`."""
    *parts, leaf = path.split("/")
    pointwise = parts[-1] in ("skip", "qkv", "out")
    match parts:
        case ["down" | "up" as way, i, part]:
            name = f"{way}_blocks.{i}.resnet_block.{_TORCH_BLOCK[part]}"
        case ["down_attention" | "up_attention" as way, i, part]:
            name = f"{way.removesuffix('_attention')}_blocks.{i}.attention_block.{_TORCH_ATTENTION[part]}"
        case ["mid0" | "mid1" as mid, part]:
            name = f"mid_resnet_block_{int(mid[-1]) + 1}.{_TORCH_BLOCK[part]}"
        case ["mid_attention", part]:
            name = f"mid_attn_block.{_TORCH_ATTENTION[part]}"
        case [top]:
            name = _TORCH_TOP[top]
        case _:
            raise KeyError(path)
    return torch(f"model.{name}", leaf, pointwise=pointwise)


def flax_vdm(path: str) -> Origin:
    """The google-research VDM's (and i-DODE's) array for a path of `VDMUNet`."""
    *parts, leaf = path.split("/")

    def one(name):
        return same(f"score_model/{name}/{leaf}")

    def attention(name, part):
        if part == "qkv":
            return joined(tuple(f"score_model/{name}/{p}/{leaf}" for p in "qkv"))
        return one(f"{name}/{ {'norm': 'GroupNorm_0', 'out': 'proj_out'}[part] }")

    match parts:
        case ["down" | "up" as way, i, part]:
            return one(f"{way}.block_{i}/{_FLAX_BLOCK[part]}")
        case ["down_attention" | "up_attention" as way, i, part]:
            return attention(f"{way.removesuffix('_attention')}.attn_{i}", part)
        case ["mid0" | "mid1" as mid, part]:
            return one(f"mid.block_{int(mid[-1]) + 1}/{_FLAX_BLOCK[part]}")
        case ["mid_attention", part]:
            return attention("mid.attn_1", part)
        case ["norm_out"]:
            return one("GroupNorm_0")
        case [top]:
            return one(top)
    raise KeyError(path)


def is_schedule(name: str) -> bool:
    """Whether an array belongs to the learned noise schedule, which is no part of the network."""
    return name.startswith(("gamma.", "gamma/"))
