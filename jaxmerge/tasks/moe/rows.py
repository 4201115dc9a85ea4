"""Rows of the table of mixtures: which there are, and what each differs in from row B."""

from typing import NamedTuple

from ml_collections import ConfigDict

# The row that gains are relative to.
REFERENCE = "A, equal compute"


class Variant(NamedTuple):
    """A trained mixture: what differs from row B (soft gates, all penalties, slice specialists).

    Attributes:
        key: for files and the config's `rows`.
        name: in the table.
        what: one sentence.
        count: number of experts; None for the config's.
        experts: "full" or "adapters"; None for the config's.
        sparse: the top `moe.top_k` experts per image.
        load, entropy, align: which penalties are on.
        balance: whether the choice is balanced by a bias instead of a penalty.
    """

    key: str
    name: str
    what: str
    count: int | None = None
    experts: str | None = None
    sparse: bool = False
    load: bool = True
    entropy: bool = True
    align: bool = False
    balance: bool = False


VARIANTS = (
    Variant("B", "B, soft gates", "All experts, weighted by the gate; load and entropy penalties."),
    Variant("C", "C, top 2", "Trained and run with the two largest weights, renormalised.", sparse=True),
    Variant("D", "D, slice-specialised", "B, and the gate is taught the images' slices as well.", align=True),
    Variant(
        "aligned",
        "slice-aligned, no balancing",
        "The gate is taught the slices; no load and no entropy penalty.",
        load=False,
        entropy=False,
        align=True,
    ),
    Variant("no_load", "B without L_load", "The load penalty is off.", load=False),
    Variant("no_entropy", "B without L_ent", "The entropy penalty is off.", entropy=False),
    Variant(
        "balanced",
        "C, balanced by bias",
        "Top 2 whose choice is balanced by a bias, without the load penalty.",
        sparse=True,
        load=False,
        balance=True,
    ),
    Variant(
        "adapters",
        "B, shared trunk",
        "One trunk with adapters in place of whole networks.",
        experts="adapters",
    ),
)


def variants(asked: ConfigDict) -> list[Variant]:
    """Rows with the config's number of experts, and row B with every other number.

    Where all mixtures share a trunk already, the row that changes to one is left out; a pool of experts has neither
    other kinds nor other numbers of them.
    """
    usual = [v for v in VARIANTS if v.experts is None or not (asked.pool or v.experts == asked.experts)]
    extra = [
        Variant(f"B{k}", f"B, K = {k}", f"Soft gates over {k} experts, one per slice.", count=int(k))
        for k in asked.counts
        if k != asked.count and not asked.pool
    ]
    return [*usual, *extra]


UNTRAINED = (
    "vdm",
    "A_steps",
    "A_compute",
    "switch",
    "uniform",
    "convex",
    "affine",
    "random",
    "B_top2",
    "B_top2_article",
)


def wanted(asked: ConfigDict) -> set[str]:
    """Keys of the rows that the config asks for.

    Raises:
        ValueError: an unknown row.
    """
    known = [*UNTRAINED, *(v.key for v in variants(asked))]
    if asked.base != "checkpoint":
        known.remove("vdm")
    if tuple(asked.rows) == ("all",):
        return set(known)
    for key in asked.rows:
        if key not in known:
            raise ValueError(f"moe.rows must be 'all' or some of {', '.join(known)}, got {key!r}.")
    # Gains are over baseline A, and the sparse run of B needs B.
    return {*asked.rows, "A_compute", "B"}
