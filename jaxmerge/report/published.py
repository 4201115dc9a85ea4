"""The paper's published numbers, to stand beside measurements and never to be taken for them.

arXiv 2511.19434v1, Tables 1 to 6, as printed there; ``assets/paper_tables.json`` holds them. A measured row
is compared with the published one of the same model and threshold. Both sides carry their own definition:
a difference is only as meaningful as the weights, the images and the sampler are the same.
"""

import functools
import importlib.resources
import json
from typing import Any

# Table number -> (key in the file, {column of ours: column of the paper's}, what it holds).
TABLES = {
    1: ("table1_nll_ode_bpd", {"bpd": "nll", "nfe_likelihood": "nfe"}, "exact likelihood by the ODE"),
    2: ("table2_fid50k", {}, "FID of 50 000 samples"),
    5: ("table5_vlb_bpd", {"vlb": "mean"}, "variational bound, 10 runs of batch 512"),
}
SAMPLERS = {"ancestral": {"fid": "ancestral256"}, "ode": {"fid": "ode", "nfe_sampling": "ode_nfe"}}
DATA = ("cifar10", "imagenet32_old")
# Thresholds are printed with one decimal.
SAME_ETA = 0.005


@functools.cache
def tables() -> dict[str, Any]:
    """The published tables as they are in the file."""
    path = importlib.resources.files("jaxmerge") / "assets" / "paper_tables.json"
    return json.loads(path.read_text(encoding="utf-8"))


def columns() -> list[tuple[str, float | str | None]]:
    """(model, threshold) of each published column: "EDM", merged at "eta_min", 0.1, ..., "eta_max", "VDM"."""
    return [(c, None) if c in ("EDM", "VDM") else ("merged", c) for c in tables()["eta_columns"]]


def rows(number: int, data: str) -> list[dict[str, Any]]:
    """A published sweep over thresholds as rows in our names.

    Args:
        number: table 1, 2 or 5.
        data: "cifar10" or "imagenet32_old".

    Returns:
        One row per model (and sampler, in table 2): "model", "eta" (a number, "eta_min", "eta_max" or None) and
        the published values.

    Raises:
        ValueError: no such table or data set.
    """
    if number not in TABLES or data not in DATA:
        raise ValueError(
            f"published sweeps are tables {', '.join(map(str, TABLES))} for {' and '.join(DATA)}, got table {number} "
            f"for {data!r}."
        )
    key, names, _ = TABLES[number]
    values = tables()[key][data]
    kinds = list(SAMPLERS.items()) if number == 2 else [(None, names)]
    found = []
    for sampler, theirs in kinds:
        for i, (model, eta) in enumerate(columns()):
            row = {"model": model, "eta": eta} | ({"sampler": sampler} if sampler else {})
            found.append(row | {ours: values[column][i] for ours, column in theirs.items()})
            if number == 5:
                found[-1]["vlb_std"] = values["std"][i]
    return found


def beside(measured: list[dict[str, Any]], number: int, data: str) -> list[dict[str, Any]]:
    """Every published value with the measured one of the same model, threshold and sampler.

    Args:
        measured: a run's rows.
        number, data: as in `rows`.

    Returns:
        Entries {"model", "eta", "sampler", "quantity", "published", "measured", "se", "difference"}; the last
        three are None where the run has no such row. The lowest and the highest measured threshold stand for
        the paper's eta_min and eta_max.
    """
    etas = sorted(row["eta"] for row in measured if row.get("eta") is not None)
    ends = {"eta_min": etas[0], "eta_max": etas[-1]} if etas else {}
    found = []
    for row in rows(number, data):
        eta = ends.get(row["eta"]) if isinstance(row["eta"], str) else row["eta"]
        match = _matching(measured, row, eta)
        for quantity in ("bpd", "vlb", "fid", "nfe_likelihood", "nfe_sampling"):
            if quantity not in row:
                continue
            value = None if match is None else match.get(quantity)
            found.append(
                {
                    "model": row["model"],
                    "eta": row["eta"],
                    "sampler": row.get("sampler"),
                    "quantity": quantity,
                    "published": row[quantity],
                    "measured": value,
                    "se": None if match is None else match.get(f"{quantity}_se"),
                    "difference": None if value is None else value - row[quantity],
                }
            )
    return found


def _matching(measured, row, eta) -> dict[str, Any] | None:
    if row["model"] == "merged" and eta is None:
        return None
    for candidate in measured:
        if candidate["model"] != row["model"] or candidate.get("dequantization") not in (
            None,
            "truncated_normal",
        ):
            continue
        if row.get("sampler") not in (None, candidate.get("sampler")):
            continue
        theirs = candidate.get("eta")
        if eta is None or (theirs is not None and abs(theirs - eta) <= SAME_ETA):
            return candidate
    return None
