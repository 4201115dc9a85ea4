"""The paper's published numbers, to stand beside measurements and never to be taken for them.

arXiv 2511.19434v1, Tables 1 to 6, as printed there; ``assets/paper_tables.json`` holds them. A measured row
is compared with the published one of the same model and threshold. Both sides carry their own definition:
a difference is only as meaningful as the weights, the images and the sampler are the same.
"""

import functools
import importlib.resources
import json
import re
from typing import Any

from jaxmerge import noise

# Table number -> (key in the file, {column of ours: column of the paper's}, what it holds).
TABLES = {
    1: ("table1_nll_ode_bpd", {"bpd": "nll", "nfe_likelihood": "nfe"}, "exact likelihood by the ODE"),
    2: ("table2_fid50k", {}, "FID of 50 000 samples"),
    5: (
        "table5_vlb_bpd",
        {"vlb": "mean", "vlb_std_of_groups": "std"},
        "variational bound, 10 runs of batch 512, and their standard deviation",
    ),
}
# Columns of table 6 per data set: likelihood, FID, network calls.
COMPARISON = {"cifar10": slice(1, 4), "imagenet32_old": slice(4, 7)}
# Rows of table 6 that a run may have too, by their names there: (model, threshold, sampler).
OWN = {
    "EDM with Heun (Karras et al., 2022)": ("EDM", None, "heun"),
    "Paper: VDM, gamma in [-13.3, 5]": ("VDM", None, "ode"),
    "Paper: EDM, gamma in [-12.43, 8.764]": ("EDM", None, "ode"),
    "Paper: merged, eta = 0.4, CIFAR-10": ("merged", 0.4, "ode"),
    "Paper: merged, eta = 0.3, CIFAR-10": ("merged", 0.3, "ode"),
    "Paper: merged, eta = 0.5, ImageNet32": ("merged", 0.5, "ode"),
}
SAMPLERS = {"ancestral": {"fid": "ancestral256"}, "ode": {"fid": "ode", "nfe_sampling": "ode_nfe"}}
DATA = ("cifar10", "imagenet32_old")
# What is compared; the last two, of samples, belong to a sampler.
OF_SAMPLES = ("fid", "nfe_sampling")
QUANTITIES = ("bpd", "vlb", "vlb_std_of_groups", "nfe_likelihood", *OF_SAMPLES)
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
    """Table 6: its models beside this run's, other people's as printed there; then what the paper does not have.

    The paper's own rows and EDM with Heun's method meet the measured row of the same model, threshold and sampler.
    """
    alone, found = _measurements(measured), []
    for name, *values in (row[:1] + row[COMPARISON[data]] for row in tables()["table6_comparison"]):
        model, eta, sampler = OWN.get(name, (name, None, None))
        for quantity, value in printed_values(*values, as_numbers=name in OWN).items():
            row = {"model": model, "eta": eta, "sampler": sampler if quantity in OF_SAMPLES else None}
            match = _matching(measured, row, eta)
            found.append(_beside(row, quantity, value, match))
            if match is not None:
                alone.pop(_key(match, quantity), None)
    for (model, eta, sampler, quantity), row in alone.items():
        here = {"model": f"here: {model}", "eta": eta, "sampler": sampler}
        found.append(_beside(here, quantity, None, row))
    return found


def printed_values(likelihood, fid, nfe, *, as_numbers: bool) -> dict[str, float | str]:
    """The values of one row of table 6 that are there, by our names.

    Args:
        likelihood: bits per dimension with a remark, such as "2.64 / 2.66 VLB", or None.
        fid: a number, one with a remark, or None.
        nfe: network calls, or None.
        as_numbers: without remarks, a bound apart from a likelihood; otherwise values stay as printed.
    """
    found = {"bpd": likelihood, "fid": fid, "nfe_sampling": nfe}
    if as_numbers:
        parts = likelihood.split("/") if likelihood else []
        likelihoods = {"vlb" if "VLB" in part else "bpd": _number(part) for part in parts}
        found = likelihoods | {"fid": _number(fid), "nfe_sampling": nfe}
    return {quantity: value for quantity, value in found.items() if value is not None}


def _number(printed: float | str | None) -> float | None:
    return float(re.search(r"[\d.]+", printed)[0]) if isinstance(printed, str) else printed


def _measurements(measured) -> dict[tuple, dict[str, Any]]:
    """The measured row of every model, threshold, sampler and quantity that table 6 has a column for."""
    rows = [row for row in measured if _usual(row)]
    quantities = ("bpd", "vlb", *OF_SAMPLES)
    return {_key(row, name): row for row in rows for name in quantities if row.get(name) is not None}


def _key(row, quantity: str) -> tuple:
    return row["model"], row.get("eta"), row.get("sampler") if quantity in OF_SAMPLES else None, quantity


def _usual(row) -> bool:
    return row.get("dequantization") in (None, "truncated_normal")


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
        three are None where the run has no such row, or no such quantity. The lowest and the highest measured
        threshold stand for the paper's eta_min and eta_max.
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
        found += [_beside(row, quantity, row[quantity], match) for quantity in QUANTITIES if quantity in row]
    return found


def _beside(row, quantity: str, value, match) -> dict[str, Any]:
    match = match or {}
    return _entry(row, quantity, value, match.get(quantity), match.get(f"{quantity}_se"))


def _matching(measured, row, eta) -> dict[str, Any] | None:
    """The measured row of the same model and sampler at the nearest threshold that is the same as printed."""
    if row["model"] == "merged" and eta is None:
        return None
    sampler = row.get("sampler")
    same = [
        candidate
        for candidate in measured
        if candidate["model"] == row["model"]
        and _usual(candidate)
        and sampler in (None, candidate.get("sampler"))
    ]
    if eta is not None:
        near = [candidate for candidate in same if abs(candidate["eta"] - eta) <= SAME_ETA]
        same = sorted(near, key=lambda candidate: abs(candidate["eta"] - eta))
    return same[0] if same else None
