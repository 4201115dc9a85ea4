"""From a run's measurements to its results: rows, differences and terms.

A part that the config leaves out (no test images for the likelihood or the bound, no samples, no proposal)
is absent from the measurements, and so are its columns.
"""

import math
from typing import Any

import numpy as np

from jaxmerge import likelihood
from jaxmerge.likelihood import Likelihood
from jaxmerge.metrics import frechet
from jaxmerge.metrics.seeds import over_seeds
from jaxmerge.report import published
from jaxmerge.tasks import costs, reconstructions, wording
from jaxmerge.tasks.quality import describe


def summarise(config, setup, measured: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(results, pictures) for `Run.finish`; see ``report/page.py`` for their keys."""
    table = rows(config, measured)
    results = {
        "title": config.title or f"Two experts of {config.data.name} and their merges",
        "levels": setup.low.pixel_scale.levels,
        "gamma_range": [setup.low.gamma_range[0], setup.high.gamma_range[1]],
        "data": {split: getattr(setup, split).record for split in ("train", "validation", "test")},
        "experts": setup.records,
        "rows": table,
        "paired": paired(config, setup, measured),
        "terms": terms(measured),
        "alignment": alignment(measured),
        "definitions": wording.definitions(config, setup, measured),
        "notes": [*wording.notes(setup, measured), *filter(None, [config.report.published_note])],
        "published": beside_paper(config, table),
        "seeds": seeds(measured),
        **describe(setup.judge),
        **proposed(setup, measured),
        **floor(config, setup, measured),
    }
    if "likelihood" in measured:
        results["grid"] = measured["grid"]
        results["sweep_cost"] = {k: measured["likelihood"][k] for k in ("calls", "calls_apart")}
    results |= besides(config, measured)
    if config.report.diagram:
        ends = {"gamma_low": setup.high.gamma_range[0], "gamma_high": setup.low.gamma_range[1]}
        eta = setup.gamma(measured["chosen_eta"])
        results["diagram"] = {"gamma_range": results["gamma_range"], "gamma_eta": eta, **ends}
    return results, pictures(setup, measured, config.report.columns, config.report.merges)


def beside_paper(config, table) -> list[dict[str, Any]]:
    """The paper's tables that the config names, beside the measured rows."""
    asked = config.report
    # Numbers of another data set stand beside no measurement.
    comparable = table if config.data.name == asked.published_data else []
    data, source = asked.published_data, published.tables()["source"]
    common = {"data": data, "note": asked.published_note, "source": source}
    return [
        {"table": number, **common, "entries": published.beside(comparable, number, data)}
        for number in asked.published
    ]


def besides(config, measured) -> dict[str, Any]:
    """Reconstructions and costs of both experts and of the merge at the chosen threshold."""
    found: dict[str, Any] = {}
    eta = measured["chosen_eta"]
    if "reconstructions" in measured:
        done = measured["reconstructions"]
        entries = reconstructions.entries(config, done, eta)
        found["reconstructions"] = {
            "entries": entries,
            "definition": wording.reconstruction_definition(config, done),
        }
    if "cost" in measured:
        spent = costs.entries(measured["cost"], eta)
        found["costs"] = {
            "entries": spent,
            "definition": wording.cost_definition(config, spent, measured["cost"]),
        }
    return found


def proposed(setup, measured) -> dict[str, Any]:
    """The proposal and the error curves that it came from."""
    proposal = measured.get("proposal")
    if proposal is None:
        return {}
    weights = proposal["weights"]
    return {
        "proposed": {"best_bound": proposal["best"], "cautious": proposal["cautious"]},
        "curves": {
            "gamma": proposal["curve_gamma"],
            "experts": dict(zip(("VDM", "EDM"), proposal["curve_density"], strict=True)),
            "ranges": {"VDM": setup.low.gamma_range, "EDM": setup.high.gamma_range},
            "unit": "bits per dimension and unit of γ",
            "split": setup.validation.split,
        },
        "bound_by_eta": {
            "eta": proposal["etas"],
            "bpd": proposal["bpd"],
            "se": proposal["se"],
            "split": setup.validation.split,
        },
        "weights": {"experts": ["VDM", "EDM"]}
        | {name: weights[name] for name in ("gamma", "affine", "convex", "condition")},
    }


def models(measured) -> list[tuple[str, float | None, str]]:
    """(model, eta, key of its measurements) in the order of the table."""
    merged = [("merged", eta, f"eta_{i}") for i, eta in enumerate(measured["etas"])]
    return [("EDM", None, "EDM"), *merged, ("VDM", None, "VDM")]


def likelihood_of(measured, key: str) -> Likelihood | None:
    """A model's likelihoods of the test images; None where they were not measured."""
    found = measured.get("likelihood")
    if found is None:
        return None
    return Likelihood(**(found[key] if key in found else found["merged"][key.removeprefix("eta_")]))


def rows(config, measured) -> list[dict[str, Any]]:
    """One row per model and sampler; a model's likelihood stands in each of its rows."""
    table, split = [], {"split": config.data.test_split}
    drawn = any(name.startswith("samples_") for name in measured.get("samples", {}))
    if not drawn and not {"likelihood", "bound"} & measured.keys():
        return []
    for sampler in config.sampling.sampler:
        for model, eta, key in models(measured):
            scores = list(sample_scores(measured, sampler, eta, key).values())
            if not scores and sampler != config.sampling.sampler[0]:
                continue
            own = likelihood_of(measured, key)
            figures = bpd_figures(own) if own is not None else {}
            table.append(
                {"model": model, "eta": eta}
                | figures
                | bound_figures(measured, key, config.bound.groups)
                | sampling_figures(sampler, scores)
                | split
            )
    uniform = likelihood_of(measured, "EDM_uniform")
    if uniform is not None:
        table.append(
            {"model": "EDM", "eta": None, "dequantization": "uniform", **bpd_figures(uniform), **split}
        )
    return table


def bpd_figures(result: Likelihood) -> dict[str, Any]:
    """The likelihood's columns."""
    mean = likelihood.mean_bpd(result)
    return {
        "bpd": mean.mean,
        "bpd_se": mean.se,
        "nfe_likelihood": float(np.mean(result.nfe)),
        "n_images": mean.count,
        "n_failed": mean.failed,
        "n_refined": int(np.sum(result.refined)),
    }


def bound_terms(measured, key: str) -> np.ndarray | None:
    """(prior, reconstruction, diffusion) per test image [N, 3] of a model, bits per dimension; or None."""
    bound = measured.get("bound")
    if bound is None:
        return None
    return bound[key] if key in ("VDM", "EDM") else bound["merged"][key.removeprefix("eta_")]


def bound_figures(measured, key: str, groups: int) -> dict[str, float]:
    """The bound's columns; with groups also the standard deviation of the groups' means."""
    found = bound_terms(measured, key)
    if found is None:
        return {}
    total = found.sum(-1)
    figures = {"vlb": float(total.mean()), "vlb_se": float(total.std(ddof=1) / math.sqrt(len(total)))}
    if groups > 1:
        means = [part.mean() for part in np.array_split(total, groups)]
        figures["vlb_std_of_groups"] = float(np.std(means, ddof=1))
    return figures


def sample_scores(measured, sampler: str, eta: float | None, key: str) -> dict[str, dict[str, float]]:
    """The scores of a model's samples, stage by stage; a stage is a seed."""
    found = {}
    for name, stage in measured.get("samples", {}).items():
        if not name.startswith(f"samples_{sampler}_"):
            continue
        where = key
        if eta is not None:
            matches = np.flatnonzero(np.abs(np.asarray(stage["etas"]) - eta) < 1e-9)
            where = f"eta_{matches[0]}" if len(matches) else None
        if where in stage["scores"]:
            found[name] = {**stage["scores"][where], "count": stage["count"]}
    # A threshold that also ran with fewer samples is judged by its full runs.
    most = max((s["count"] for s in found.values()), default=0)
    return {name: s for name, s in found.items() if s["count"] == most}


def seeds(measured) -> list[dict[str, Any]]:
    """Mean, spread, minimum and confidence interval of every score that several seeds have."""
    found = []
    samplers = dict.fromkeys(name.split("_")[1] for name in measured.get("samples", {}) if name != "floor")
    for sampler in samplers:
        for model, eta, key in models(measured):
            stages = sample_scores(measured, sampler, eta, key)
            numbers, scores = [int(name.split("_")[2]) for name in stages], list(stages.values())
            if len(scores) < 2:
                continue
            row = {"model": model, "eta": eta, "sampler": sampler}
            # An error within a seed is no score.
            for name in [name for name in scores[0] if name not in ("nfe", "count", "kid_block_error")]:
                over = over_seeds([score[name] for score in scores], seeds=numbers, allow_few=True)
                kept = {k: getattr(over, k) for k in ("mean", "std", "minimum", "maximum", "low", "high")}
                found.append(
                    row | {"quantity": name, "n_seeds": len(scores), "seed_numbers": list(over.seeds)} | kept
                )
    return found


def sampling_figures(sampler: str, scores: list[dict[str, float]]) -> dict[str, Any]:
    """The samples' columns: mean over seeds and its standard error."""
    if not scores:
        return {"sampler": None}
    figures = {"sampler": sampler, "n_samples": int(scores[0]["count"]), "n_seeds": len(scores)}
    figures["nfe_sampling"] = float(np.mean([s["nfe"] for s in scores]))
    for name in scores[0]:
        if name not in ("nfe", "count"):
            figures[name], figures[f"{name}_se"] = frechet.mean_and_se([s[name] for s in scores])
    return figures


def paired(config, setup, measured) -> list[dict[str, Any]]:
    """Differences of every merge and both experts: likelihood and bound per image, distance per seed."""
    table = models(measured)
    found = []
    for _, eta, key in table:
        for name, other_eta, other in table:
            if eta is None or other_eta is not None:
                continue
            common = {"model_a": ["merged", eta], "model_b": name}
            found += paired_images(measured, common, key, other)
            for sampler in config.sampling.sampler if setup.judge is not None else ():
                column = setup.judge.names.column
                found += paired_distance(measured, common, sampler, column, (eta, key), (None, other))
    return found


def paired_images(measured, common, key: str, other: str) -> list[dict[str, Any]]:
    """Mean differences of two models' likelihoods and bounds over the same images, noise and probes."""
    found = []
    ours, theirs = likelihood_of(measured, key), likelihood_of(measured, other)
    if ours is not None:
        apart = likelihood.paired_difference(ours, theirs)
        found.append(common | {"difference": apart.mean, "se": apart.se, "n_images": apart.count})
    if bound_terms(measured, key) is not None:
        bound = bound_terms(measured, key).sum(-1) - bound_terms(measured, other).sum(-1)
        found.append(
            common
            | {
                "quantity": "bound",
                "difference": float(bound.mean()),
                "se": float(bound.std(ddof=1) / math.sqrt(len(bound))),
                "n_images": len(bound),
            }
        )
    return found


def paired_distance(measured, common, sampler: str, column: str, a: tuple, b: tuple) -> list[dict[str, Any]]:
    """Mean difference of two models' distances over the seeds that both have: same noise, same seeds."""
    ours, theirs = sample_scores(measured, sampler, *a), sample_scores(measured, sampler, *b)
    apart = [ours[name][column] - theirs[name][column] for name in ours if name in theirs]
    if len(apart) < 2:
        return []
    mean, error = frechet.mean_and_se(apart)
    entry = {"quantity": column, "sampler": sampler, "difference": mean, "se": error, "n_seeds": len(apart)}
    return [common | entry]


def terms(measured) -> list[dict[str, Any]]:
    """Mean terms of likelihood and bound, for the experts and the proposed thresholds."""
    proposal = measured.get("proposal") or {"best": None, "cautious": None}
    chosen = {proposal["best"], proposal["cautious"]}
    found = []
    for model, eta, key in models(measured):
        if eta is not None and eta not in chosen:
            continue
        entry: dict[str, Any] = {"model": model, "eta": eta}
        result = likelihood_of(measured, key)
        if result is not None:
            ok = np.asarray(result.ok)
            names = ("prior", "trace", "dequantization", "decoder")
            exact = {name: float(np.mean(np.asarray(getattr(result, name))[ok])) for name in names}
            entry["likelihood"] = {k: v for k, v in exact.items() if v != 0}
        if bound_terms(measured, key) is not None:
            prior, reconstruction, diffusion = bound_terms(measured, key).mean(0)
            entry["bound"] = {"prior": prior, "reconstruction": reconstruction, "diffusion": diffusion}
        found.append(entry)
    return found


def alignment(measured) -> list[dict[str, Any]]:
    """What pixel-scale alignment changes: the paper's listing minus ours."""
    found = []
    for name, arrays in measured.get("alignment", {}).items():
        eta = measured["chosen_eta"] if name == "merged" else None
        key = name if eta is None else f"eta_{measured['etas'].index(eta)}"
        listing = Likelihood(**arrays)
        count = len(listing.bpd)
        aligned = Likelihood(*(np.asarray(v)[:count] for v in likelihood_of(measured, key)))
        difference = likelihood.paired_difference(listing, aligned)
        found.append(
            {
                "model": name,
                "eta": eta,
                "aligned": likelihood.mean_bpd(aligned).mean,
                "listing": likelihood.mean_bpd(listing).mean,
                "difference": difference.mean,
                "se": difference.se,
            }
        )
    return found


def floor(config, setup, measured) -> dict[str, Any]:
    """What real images would score at the samples' number, where that can be told; else the test images."""
    found = measured.get("samples", {}).get("floor")
    if found is None:
        return {}
    column, tests = setup.judge.names.column, found["n_images"]
    if "at_sample_count" not in found:
        what = f"that of {tests} test images; it depends on the number of images"
        return {"floor": {column: found["distance"], "n_images": tests, "what": what}}
    count = config.sampling.n_samples
    what = f"expected of {count} real images, extrapolated from {tests} test images"
    return {
        "floor": {
            column: found["at_sample_count"],
            "n_images": count,
            "what": what,
            "test_images": found["distance"],
        }
    }


def pictures(setup, measured, columns: int, merges: int) -> dict[str, np.ndarray]:
    """Samples from the same noise: both experts, and merges spread over the thresholds, or all where `merges` is 0."""
    drawn = [s for name, s in measured.get("samples", {}).items() if name.startswith("samples_")]
    if not drawn:
        return {}
    count = len(measured["etas"])
    stage = next((s for s in drawn if len(s["etas"]) == count and "EDM" in s["pictures"]), drawn[0])
    drawn_etas = len(stage["etas"])
    spread = np.unique(np.linspace(0, drawn_etas - 1, merges or drawn_etas).round().astype(int))
    proposal = measured.get("proposal") or {}
    near = [
        int(np.argmin(np.abs(stage["etas"] - proposal[k]))) for k in ("best", "cautious") if k in proposal
    ]
    chosen = sorted({*spread.tolist(), *near})
    names = [("EDM", "EDM")] if "EDM" in stage["pictures"] else []
    names += [(f"eta_{i}", f"η = {stage['etas'][i]:.3f}") for i in chosen]
    names += [("VDM", "VDM")] if "VDM" in stage["pictures"] else []
    return {
        "samples": np.stack([stage["pictures"][key][:columns] for key, _ in names]),
        "sample_labels": np.array([label for _, label in names]),
        "data": setup.test.take(min(columns, len(setup.test))).images,
    }
