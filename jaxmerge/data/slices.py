"""Slices of a data set: named predicates over (image, label, attributes), for experts that specialise.

A slice is one of K parts of a data set that overlap or leave images out only where that lies in their
nature (attributes may). Every threshold is a quantile of a statistic over the *training* split and is
kept in the slice's description; other splits are cut by the same numbers.

    kind              statistic or rule
    ================  =========================================================================
    classes           K groups of neighbouring classes, as equal in size as their number allows
    colour_variance   variance of the values over pixels, averaged over channels
    texture           mean gradient energy: squared differences to the right and lower neighbour
    ink               mean value, the share of ink on digits
    lighting          mean luminance 0.299 R + 0.587 G + 0.114 B (the value itself on grey images)
    hair              CelebA's hair attributes; black, blond, brown, grey for K = 4, dark and light for
                      K = 2; with `lighting` low and high for K = 8
    subcategory       K parts by k-means on features of training images, the attribute "subcategory_K"
                      (made by a command: see `jaxmerge.data.subcategories`)
    A+B               every slice of A with every slice of B

Values are grey levels divided by V - 1, in [0, 1]. Kinds with a statistic cut it at its K-quantiles, so
that their slices are of equal size on training images, from "lowest" to "highest".
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jaxmerge.data import subcategories
from jaxmerge.data.dataset import Dataset

LUMINANCE = np.array([0.299, 0.587, 0.114])
HAIR = {
    4: {
        "black hair": ("Black_Hair",),
        "blond hair": ("Blond_Hair",),
        "brown hair": ("Brown_Hair",),
        "grey hair": ("Gray_Hair",),
    },
    2: {"dark hair": ("Black_Hair", "Brown_Hair"), "light hair": ("Blond_Hair", "Gray_Hair")},
}

Values = Float[np.ndarray, "n H W C"]
Attributes = Mapping[str, np.ndarray]


def _values(images: UInt8[np.ndarray, "n H W C"], levels: int) -> Values:
    return images.astype(np.float64) / (levels - 1)


def colour_variance(x: Values) -> Float[np.ndarray, " n"]:
    """Variance over pixels, averaged over channels."""
    return x.var((1, 2)).mean(-1)


def texture(x: Values) -> Float[np.ndarray, " n"]:
    """Mean gradient energy: mean squared difference to the right neighbour plus that to the lower one."""
    return (np.diff(x, axis=2) ** 2).mean((1, 2, 3)) + (np.diff(x, axis=1) ** 2).mean((1, 2, 3))


def ink(x: Values) -> Float[np.ndarray, " n"]:
    """Mean value."""
    return x.mean((1, 2, 3))


def lighting(x: Values) -> Float[np.ndarray, " n"]:
    """Mean luminance."""
    return ink(x) if x.shape[-1] == 1 else (x.mean((1, 2)) @ LUMINANCE)


STATISTICS: dict[str, Callable[[Values], Float[np.ndarray, " n"]]] = {
    "colour_variance": colour_variance,
    "texture": texture,
    "ink": ink,
    "lighting": lighting,
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One named part of a data set: images that fulfil all of its conditions.

    Attributes:
        name: for people.
        bounds: statistic -> (low, high), fulfilled where low <= value < high.
        classes: labels that belong to it; None for any.
        attributes: names of which at least one must hold; None for any.
        subcategory: (k, K) for value k of the attribute "subcategory_K"; None for any.
    """

    name: str
    bounds: tuple[tuple[str, float, float], ...] = ()
    classes: tuple[int, ...] | None = None
    attributes: tuple[str, ...] | None = None
    subcategory: tuple[int, int] | None = None

    def holds(
        self,
        images: UInt8[np.ndarray, "n H W C"],
        labels: Int[np.ndarray, " n"],
        attributes: Attributes,
        levels: int,
    ) -> Bool[np.ndarray, " n"]:
        """Which images belong to the slice.

        Raises:
            ValueError: an attribute that the data set does not have.
        """
        inside = np.ones(len(images), bool)
        values = _values(images, levels)
        for statistic, low, high in self.bounds:
            value = STATISTICS[statistic](values)
            inside &= (low <= value) & (value < high)
        if self.classes is not None:
            inside &= np.isin(labels, self.classes)
        if self.attributes is not None:
            inside &= np.any([_attribute(attributes, name) > 0 for name in self.attributes], axis=0)
        if self.subcategory is not None:
            number, count = self.subcategory
            inside &= _attribute(attributes, subcategories.attribute(count)) == number
        return inside

    def both(self, other: "Slice") -> "Slice":
        """Images that belong to this slice and to the other."""
        for name in ("classes", "attributes", "subcategory"):
            if getattr(self, name) is not None and getattr(other, name) is not None:
                raise ValueError(
                    f"slices that both choose by {name} cannot be crossed; combine two different kinds."
                )

        def either(name):
            mine = getattr(self, name)
            return getattr(other, name) if mine is None else mine

        return Slice(
            f"{self.name}, {other.name}",
            self.bounds + other.bounds,
            either("classes"),
            either("attributes"),
            either("subcategory"),
        )


def _attribute(attributes: Attributes, name: str) -> np.ndarray:
    if name not in attributes:
        has = ", ".join(sorted(attributes)) or "none"
        raise ValueError(
            f"these slices need the attribute {name!r}, the data set has {has}; choose another kind."
        )
    return np.asarray(attributes[name])


@dataclasses.dataclass(frozen=True)
class SliceSet:
    """K slices of one data set.

    Attributes:
        kind: as it was asked for.
        levels: grey levels of the images that it was fitted on.
        slices: the K slices with their thresholds.
    """

    kind: str
    levels: int
    slices: tuple[Slice, ...]

    def __len__(self) -> int:
        return len(self.slices)

    @property
    def names(self) -> list[str]:
        return [s.name for s in self.slices]

    def members(self, data: Dataset) -> Bool[np.ndarray, "N K"]:
        """Which images of a split belong to which slice; large splits are read in parts.

        Raises:
            ValueError: images with another number of grey levels, or without an attribute.
        """
        if data.levels != self.levels:
            raise ValueError(
                f"these slices were made for {self.levels} grey levels, got images with {data.levels}."
            )
        parts = [
            np.stack([s.holds(b.images, b.labels, b.attributes, b.levels) for s in self.slices], axis=1)
            for b in data.parts()
        ]
        return np.concatenate(parts)

    def report(self, data: Dataset) -> dict[str, Any]:
        """Sizes and overlaps on a split, with every slice's definition; plain JSON."""
        members = self.members(data)
        counts = members.T.astype(int) @ members.astype(int)
        return {
            "kind": self.kind,
            "split": data.split,
            "images": len(data),
            "slices": [
                _plain(s) | {"images": int(n)} for s, n in zip(self.slices, counts.diagonal(), strict=True)
            ],
            "overlap": counts.tolist(),
            "in_none": int(np.sum(~members.any(axis=1))),
            "in_several": int(np.sum(members.sum(axis=1) > 1)),
        }


def _plain(one: Slice) -> dict[str, Any]:
    plain = {"name": one.name}
    if one.bounds:
        # Infinite ends are left out: JSON has none.
        plain["bounds"] = {
            name: {k: v for k, v in (("from", low), ("below", high)) if np.isfinite(v)}
            for name, low, high in one.bounds
        }
    plain |= {
        name: list(value)
        for name in ("classes", "attributes", "subcategory")
        if (value := getattr(one, name)) is not None
    }
    return plain


def fit(kind: str, count: int, train: Dataset) -> SliceSet:
    """K slices of a kind, their thresholds from the training images.

    Args:
        kind: see the table of this module; "A+B" crosses two kinds, the first with 2 slices for K = 4 and 8.
        count: K.
        train: the training split (or its "train_part").

    Raises:
        ValueError: another split, an unknown kind, or a number of slices that the kind does not have.

    Example:
        >>> slices = fit("classes", 4, digits.load("train"))
        >>> slices.members(digits.load("test")).shape
        (360, 4)
    """
    if not train.split.startswith("train"):
        raise ValueError(f"thresholds of slices come from training images only, got the {train.split} split.")
    if count < 1:
        raise ValueError(f"the number of slices must be at least 1, got {count}.")
    return SliceSet(kind, train.levels, tuple(_slices(kind, count, train)))


def _slices(kind: str, count: int, train: Dataset) -> list[Slice]:
    if "+" in kind:
        first, second = kind.split("+", 1)
        if count % 2:
            raise ValueError(f"crossed slices need an even number, got {count}.")
        return [a.both(b) for a in _slices(first, 2, train) for b in _slices(second, count // 2, train)]
    if kind in STATISTICS:
        return _bands(kind, count, train)
    if kind == "classes":
        return _class_groups(count, train)
    if kind == "hair":
        return _hair(count, train)
    if kind == "subcategory":
        return _subcategories(count, train)
    raise ValueError(
        f"slices must be of a kind out of {', '.join(STATISTICS)}, classes, hair, subcategory, or two of them joined "
        f"by '+', got {kind!r}."
    )


def _bands(statistic: str, count: int, train: Dataset) -> list[Slice]:
    values = np.concatenate([STATISTICS[statistic](_values(b.images, b.levels)) for b in train.parts()])
    cuts = [-np.inf, *np.quantile(values.astype(np.float64), np.arange(1, count) / count), np.inf]
    label = statistic.replace("_", " ")
    ranks = {1: ["any"], 2: ["low", "high"]}.get(count) or [f"{k + 1} of {count}" for k in range(count)]
    return [
        Slice(f"{label} {rank}", ((statistic, float(a), float(b)),))
        for rank, a, b in zip(ranks, cuts[:-1], cuts[1:], strict=True)
    ]


def _class_groups(count: int, train: Dataset) -> list[Slice]:
    classes = np.unique(train.labels[train.labels >= 0])
    if count > len(classes):
        raise ValueError(
            f"{train.name} has {len(classes)} classes, which make no {count} groups; ask for fewer."
        )
    groups = [tuple(int(c) for c in group) for group in np.array_split(classes, count)]
    return [Slice("class " + "/".join(map(str, group)), classes=group) for group in groups]


def _hair(count: int, train: Dataset) -> list[Slice]:
    if count == 8:
        return [a.both(b) for a in _hair(4, train) for b in _bands("lighting", 2, train)]
    if count not in HAIR:
        raise ValueError(f"hair makes 2, 4 or (with lighting) 8 slices, got {count}.")
    for names in HAIR[count].values():
        for name in names:
            _attribute(train.attributes, name)
    return [Slice(name, attributes=names) for name, names in HAIR[count].items()]


def _subcategories(count: int, train: Dataset) -> list[Slice]:
    if subcategories.attribute(count) not in train.attributes:
        raise ValueError(
            f"{count} slices by subcategory need {train.name} in {count} subcategories, which were not made; make them "
            f"with: {subcategories.command(train.name, count)} (--features pixels needs no network)"
        )
    return [Slice(f"subcategory {k + 1} of {count}", subcategory=(k, count)) for k in range(count)]
