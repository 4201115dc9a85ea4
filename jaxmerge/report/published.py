"""The paper's published numbers, to stand beside measurements and never to be taken for them.

arXiv 2511.19434v1, Tables 1 to 6, as printed there; ``assets/paper_tables.json`` holds them. A measured row
is compared with the published one of the same model and threshold. Both sides carry their own definition:
a difference is only as meaningful as the weights, the images and the sampler are the same.
"""

import functools
import importlib.resources
import json
from typing import Any

from jaxmerge import noise

# Table number -> (key in the file, {column of ours: column of the paper's}, what it holds).
TABLES = {
    1: ("table1_nll_ode_bpd", {"bpd": "nll", "nfe_likelihood": "nfe"}, "exact likelihood by the ODE"),
    2: ("table2_fid50k", {}, "FID of 50 000 samples"),
    5: ("table5_vlb_bpd", {"vlb": "mean"}, "variational bound, 10 runs of batch 512"),
}
# Columns of table 6 per data set: likelihood, FID, network calls.
COMPARISON = {"cifar10": slice(1, 4), "imagenet32_old": slice(4, 7)}
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


def noise_range() -> list[dict[str, Any]]:
    """Table 4: EDM's noise range in gamma, beside -log SNR = 2 log(sigma_edm) computed here."""
    found = []
    for place, values in tables()["table4_edm_gamma"].items():
        computed = float(noise.gamma_of_sigma_edm(float(values["sigma_edm"])))
        quantity = f"gamma at sigma_edm = {values['sigma_edm']:g} ({place})"
        found.append(_entry({"model": "EDM", "eta": None}, quantity, values["gamma"], computed, None))
    return found


def comparison(measured: list[dict[str, Any]], data: str) -> list[dict[str, Any]]:
    """Table 6: other methods as printed there, then this run's models, which the paper does not have."""
    found = []
    for name, *values in (row[:1] + row[COMPARISON[data]] for row in tables()["table6_comparison"]):
        for quantity, value in zip(("bpd", "fid", "nfe_sampling"), values, strict=True):
            if value is not None:
                found.append(_entry({"model": name, "eta": None}, quantity, value, None, None))
    for row in measured:
        for quantity in ("bpd", "vlb", "fid", "nfe_sampling"):
            if row.get(quantity) is not None:
                se = row.get(f"{quantity}_se")
                found.append(
                    _entry(row | {"model": f"here: {row['model']}"}, quantity, None, row[quantity], se)
                )
    return found


def _entry(row, quantity: str, published, measured, se) -> dict[str, Any]:
    numbers = isinstance(published, int | float) and measured is not None
    return {
        "model": row["model"],
        "eta": row["eta"],
        "sampler": row.get("sampler"),
        "quantity": quantity,
        "published": published,
        "measured": measured,
        "se": se,
        "difference": measured - published if numbers else None,
    }


def beside(measured: list[dict[str, Any]], number: int, data: str) -> list[dict[str, Any]]:
    """Every published value with the measured one of the same model, threshold and sampler.

    Args:
        measured: a run's rows.
        number: table 1, 2, 4, 5 or 6.
        data: as in `rows`.

    Returns:
        Entries {"model", "eta", "sampler", "quantity", "published", "measured", "se", "difference"}; the last
        three are None where the run has no such row. The lowest and the highest measured threshold stand for
        the paper's eta_min and eta_max.
    """
    if number == 4:
        return noise_range()
    if number == 6:
        return comparison(measured, data)
    etas = sorted(row["eta"] for row in measured if row.get("eta") is not None)
    ends = {"eta_min": etas[0], "eta_max": etas[-1]} if etas else {}
    found = []
    for row in rows(number, data):
        eta = ends.get(row["eta"]) if isinstance(row["eta"], str) else row["eta"]
        match = _matching(measured, row, eta)
        for quantity in ("bpd", "vlb", "fid", "nfe_likelihood", "nfe_sampling"):
            if quantity not in row:
                continue
            value, se = (None, None) if match is None else (match.get(quantity), match.get(f"{quantity}_se"))
            found.append(_entry(row, quantity, row[quantity], value, se))
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
