"""What every kind of file becomes, and how foreign numbers are checked before they are used."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from checkpoints_convert.arrival import Reading
from checkpoints_convert.names.origins import Origin
from checkpoints_convert.readers import Contents
from checkpoints_convert.readers.faults import shown

LARGEST = 100_000


class Asked(NamedTuple):
    """What a user says of a file.

    Attributes:
        kind: one of `KINDS`, or None to find out.
        weights: "ema" or "online" where a file has both; None means "ema", and leaves it to the file.
        size: height and width of a VDM's images, which its file does not say; None means 32.
        config: gives the settings of the run that wrote a torch VDM, at any depth, which say what shapes
            cannot; None where there are none.
        config_given: whether the user named the file of these settings.
        backbone: what is in the second file, where LPIPS comes in two.
    """

    kind: str | None = None
    weights: str | None = None
    size: int | None = None
    config: Callable[[], dict[str, Any] | None] = lambda: None
    config_given: bool = False
    backbone: Contents | None = None


class Source(NamedTuple):
    """A recognised file.

    Attributes:
        kind: in the words of `--kind`.
        description: for `jaxmerge.experts.io.build`; {"kind": "inception"} for Inception,
            {"kind": "lpips", "backbone": "alex"} (or "vgg") for LPIPS.
        arrays: name -> array, in the source's layout.
        origin: path of a parameter of ours -> its `Origin`.
        left_out: names that are left out on purpose.
        weights: "EMA", "online" or "the only ones".
        step: training step, or None where the file has none.
        notes: what was assumed, or left out on purpose, in sentences.
        readings: other kinds that the same contents could be, by what to do for them.
        other_weights: whether the file has the other set of weights too.
        learned: whether the file has a learned noise schedule.
        carried: what the file itself says of its origin (data set, licence, ...), where it says it.
    """

    kind: str
    description: dict[str, Any]
    arrays: dict[str, np.ndarray]
    origin: Callable[[str], Origin]
    left_out: Callable[[str], bool]
    weights: str
    step: int | None = None
    notes: tuple[str, ...] = ()
    readings: Mapping[str, Reading] = MappingProxyType({})
    other_weights: bool = False
    learned: bool = False
    carried: Mapping[str, Any] = MappingProxyType({})


def whole(values: dict[str, Any], name: str, default: int, *, low: int = 1, high: int = LARGEST) -> int:
    """A whole number among foreign settings.

    Raises:
        ValueError: another type or range; names the setting.
    """
    value = values.get(name, default)
    if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(
            f"the file's setting {name} must be a whole number from {low} to {high}, got {shown(value)}; the file "
            "is damaged or of another architecture."
        )
    return value


def wholes(values: dict[str, Any], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """A short list of whole numbers among foreign settings."""
    value = values.get(name, default)
    if not isinstance(value, list | tuple) or len(value) > 16:
        raise ValueError(
            f"the file's setting {name} must be a short list of whole numbers, got {shown(value)}."
        )
    return tuple(whole({name: item}, name, 0, low=0) for item in value)


def number(values: dict[str, Any], name: str, default: float) -> float:
    """A finite number among foreign settings."""
    value = values.get(name, default)
    if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise ValueError(f"the file's setting {name} must be a number, got {shown(value)}.")
    return float(value)


def word(values: dict[str, Any], name: str, default: str, allowed: tuple[str, ...]) -> str:
    """One of a few words among foreign settings."""
    value = values.get(name, default)
    if value not in allowed:
        raise ValueError(
            f"the file's setting {name} must be one of {', '.join(allowed)}, got {shown(value)}: this variant of "
            "the network is not supported."
        )
    return value


def training_step(tree: Any) -> int | None:
    """The step counter at the top of a tree, if there is one."""
    step = tree.get("step") if isinstance(tree, dict) else None
    if isinstance(step, np.ndarray) and step.size == 1 and step.dtype.kind in "iu":
        return int(step.reshape(()).item())
    return step if isinstance(step, int) and not isinstance(step, bool) else None
