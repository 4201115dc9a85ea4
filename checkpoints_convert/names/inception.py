"""Names of FID's Inception-v3, which its paths here repeat."""

from checkpoints_convert.names.origins import Origin, same, torch

_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


def origin(path: str) -> Origin:
    """The public state dict's array for a path of `Inception`."""
    *parts, part, leaf = path.split("/")
    if part == "fc":
        return torch("fc", leaf)
    if part == "conv":
        return torch(".".join([*parts, "conv"]), leaf)
    return same(".".join([*parts, "bn", _NORM[leaf]]))
