"""From a run's measurements to its results: rows, differences, terms and definitions."""

import math
from typing import Any

import numpy as np

from jaxmerge import likelihood
from jaxmerge.likelihood import Likelihood
from jaxmerge.metrics import frechet

SHOWN_MERGES = 5


def summarise(config, setup, measured: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(results, pictures) for `Run.finish`; see ``report/page.py`` for their keys."""
    etas, proposal = measured["etas"], measured["proposal"]
    results = {
        "title": "Two experts of handwritten digits and their merges",
        "levels": setup.low.pixel_scale.levels,
        "gamma_range": [setup.low.gamma_range[0], setup.high.gamma_range[1]],
        "proposed": {"best_bound": proposal["best"], "cautious": proposal["cautious"]},
        "rows": rows(config, measured),
        "paired": paired(config, measured),
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
        "weights": {
            "gamma": proposal["weights"]["gamma"],
            "experts": ["VDM", "EDM"],
            "affine": proposal["weights"]["affine"],
            "convex": proposal["weights"]["convex"],
            "condition": proposal["weights"]["condition"],
        },
        "terms": terms(measured),
        "alignment": alignment(measured),
        "floor": floor(config, measured),
        "grid": measured["grid"],
        "sweep_cost": {k: measured["likelihood"][k] for k in ("calls", "calls_apart")},
        "definitions": definitions(config, setup, measured),
        "notes": notes(setup, measured),
    }
    return results, pictures(setup, etas, measured, config.report.columns)


def models(measured) -> list[tuple[str, float | None, str, dict]]:
    """(model, eta, key of its samples, its likelihood's arrays) in the order of the table."""
    found = measured["likelihood"]
    merged = [("merged", eta, f"eta_{i}", found["merged"][str(i)]) for i, eta in enumerate(measured["etas"])]
    return [("EDM", None, "EDM", found["EDM"]), *merged, ("VDM", None, "VDM", found["VDM"])]


def rows(config, measured) -> list[dict[str, Any]]:
    """One row per model and sampler; a model's likelihood stands in each of its rows."""
    table = []
    for sampler in config.sampling.sampler:
        for model, eta, key, arrays in models(measured):
            scores = list(sample_scores(measured, sampler, eta, key).values())
            if not scores and sampler != config.sampling.sampler[0]:
                continue
            table.append(
                {"model": model, "eta": eta, **bpd_figures(arrays), **bound_figures(measured, key)}
                | sampling_figures(sampler, scores)
                | {"split": config.data.test_split}
            )
    uniform = bpd_figures(measured["likelihood"]["EDM_uniform"])
    table.append(
        {"model": "EDM", "eta": None, "dequantization": "uniform", **uniform, "split": config.data.test_split}
    )
    return table


def bpd_figures(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The likelihood's columns."""
    result = Likelihood(**arrays)
    mean = likelihood.mean_bpd(result)
    return {
        "bpd": mean.mean,
        "bpd_se": mean.se,
        "nfe_likelihood": float(np.mean(result.nfe)),
        "n_images": mean.count,
        "n_failed": mean.failed,
        "n_refined": int(np.sum(result.refined)),
    }


def bound_terms(measured, key: str) -> np.ndarray:
    """(prior, reconstruction, diffusion) per test image [N, 3] of a model, bits per dimension."""
    bound = measured["bound"]
    return bound[key] if key in ("VDM", "EDM") else bound["merged"][key.removeprefix("eta_")]


def bound_figures(measured, key: str) -> dict[str, float]:
    """The bound's columns."""
    total = bound_terms(measured, key).sum(-1)
    return {"vlb": float(total.mean()), "vlb_se": float(total.std(ddof=1) / math.sqrt(len(total)))}


def sample_scores(measured, sampler: str, eta: float | None, key: str) -> dict[str, dict[str, float]]:
    """The scores of a model's samples, stage by stage; a stage is a seed."""
    found = {}
    for name, stage in measured["samples"].items():
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


def sampling_figures(sampler: str, scores: list[dict[str, float]]) -> dict[str, Any]:
    """The samples' columns: mean over seeds and its standard error."""
    if not scores:
        return {"sampler": None}
    distance, error = frechet.mean_and_se([s["frechet"] for s in scores])
    score, score_error = frechet.mean_and_se([s["classifier_score"] for s in scores])
    figures = {
        "sampler": sampler,
        "frechet": distance,
        "frechet_se": error,
        "classifier_score": score,
        "classifier_score_se": score_error,
        "nfe_sampling": float(np.mean([s["nfe"] for s in scores])),
        "n_samples": int(scores[0]["count"]),
        "n_seeds": len(scores),
    }
    if "frechet_at_test_count" in scores[0]:
        figures["frechet_at_test_count"] = float(np.mean([s["frechet_at_test_count"] for s in scores]))
    return figures


def paired(config, measured) -> list[dict[str, Any]]:
    """Differences of every merge and both experts: likelihood and bound per image, distance per seed."""
    table = models(measured)
    experts = [entry for entry in table if entry[1] is None]
    found = []
    for _, eta, key, arrays in table:
        if eta is None:
            continue
        for name, _, other_key, other in experts:
            difference = likelihood.paired_difference(Likelihood(**arrays), Likelihood(**other))
            bound = bound_terms(measured, key).sum(-1) - bound_terms(measured, other_key).sum(-1)
            common = {"model_a": ["merged", eta], "model_b": name}
            found.append(
                common | {"difference": difference.mean, "se": difference.se, "n_images": difference.count}
            )
            found.append(
                common
                | {
                    "quantity": "bound",
                    "difference": float(bound.mean()),
                    "se": float(bound.std(ddof=1) / math.sqrt(len(bound))),
                    "n_images": len(bound),
                }
            )
            for sampler in config.sampling.sampler:
                found += paired_distance(measured, common, sampler, (eta, key), (None, other_key))
    return found


def paired_distance(measured, common, sampler: str, a: tuple, b: tuple) -> list[dict[str, Any]]:
    """Mean difference of two models' Frechet distances over the seeds that both have: same noise, same seeds."""
    ours, theirs = sample_scores(measured, sampler, *a), sample_scores(measured, sampler, *b)
    apart = [ours[name]["frechet"] - theirs[name]["frechet"] for name in ours if name in theirs]
    if len(apart) < 2:
        return []
    mean, error = frechet.mean_and_se(apart)
    entry = {
        "quantity": "frechet",
        "sampler": sampler,
        "difference": mean,
        "se": error,
        "n_seeds": len(apart),
    }
    return [common | entry]


def terms(measured) -> list[dict[str, Any]]:
    """Mean terms of likelihood and bound, for the experts and the proposed thresholds."""
    proposal = measured["proposal"]
    chosen = {proposal["best"], proposal["cautious"]}
    found = []
    for model, eta, key, arrays in models(measured):
        if eta is not None and eta not in chosen:
            continue
        ok = np.asarray(arrays["ok"])
        names = ("prior", "trace", "dequantization", "decoder")
        exact = {name: float(np.mean(np.asarray(arrays[name])[ok])) for name in names}
        prior, reconstruction, diffusion = bound_terms(measured, key).mean(0)
        found.append(
            {
                "model": model,
                "eta": eta,
                "likelihood": {k: v for k, v in exact.items() if v != 0},
                "bound": {"prior": prior, "reconstruction": reconstruction, "diffusion": diffusion},
            }
        )
    return found


def alignment(measured) -> list[dict[str, Any]]:
    """What pixel-scale alignment changes: the paper's listing minus ours."""
    by_name = {"EDM": measured["likelihood"]["EDM"]}
    best = measured["proposal"]["best"]
    by_name["merged"] = measured["likelihood"]["merged"][str(measured["etas"].index(best))]
    found = []
    for name, arrays in measured["alignment"].items():
        listing = Likelihood(**arrays)
        count = len(listing.bpd)
        aligned = Likelihood(**{k: np.asarray(v)[:count] for k, v in by_name[name].items()})
        difference = likelihood.paired_difference(listing, aligned)
        found.append(
            {
                "model": name,
                "eta": best if name == "merged" else None,
                "aligned": likelihood.mean_bpd(aligned).mean,
                "listing": likelihood.mean_bpd(listing).mean,
                "difference": difference.mean,
                "se": difference.se,
            }
        )
    return found


def floor(config, measured) -> dict[str, Any]:
    """What real images would score at the samples' number; the test images themselves are fewer."""
    found, count = measured["samples"]["floor"], config.sampling.n_samples
    return {
        "frechet": found["at_sample_count"],
        "n_images": count,
        "what": f"expected of {count} real images, extrapolated from {found['n_images']} test images",
        "test_images": found["distance"],
    }


def definitions(config, setup, measured) -> dict[str, str]:
    """What the columns mean in this run."""
    asked, grid = config.likelihood, measured["grid"]
    density = (
        f"of {float(grid['steps_per_gamma']):g} steps per unit of gamma, chosen on {grid.get('n_images', 0)} training "
        f"images so that doubling it changes the mean by less than {asked.tolerance:g} bpd"
    )
    control = {
        "fixed": f"a fixed Bogacki-Shampine grid {density}",
        "multistep": f"a fixed Adams-Bashforth grid {density}",
        "per_image": f"adaptive RK45, each image its own steps, rtol {asked.rtol:g}, atol {asked.atol:g}",
        "batch": f"adaptive RK45, one step size per batch of {asked.batch_size}, rtol {asked.rtol:g}, atol {asked.atol:g}",
    }[asked.control]
    trace = "exact trace" if asked.trace == "exact" else f"{asked.probes} Rademacher probe(s) per image"
    return {
        "bpd": f"Exact likelihood of {config.data.test_split} images by the probability-flow ODE, in bits per dimension: "
        f"{asked.dequantization.replace('_', '-')} dequantisation, {trace}, {control}, float32 with full-precision "
        "matrix products. ± is the standard error over images; models share images, dequantisation noise and probes, "
        "so that their differences are far more certain than the values.",
        "vlb": f"Variational lower bound of {config.bound.n_images} {config.data.test_split} images in continuous time, "
        f"{config.bound.n_times} stratified noise levels per image between neighbouring candidate thresholds, "
        f"{config.bound.repeats} repeats. Another model (the SDE) of the same network: no order between the two is "
        "implied for trained networks.",
        "frechet": "Fréchet distance, digits classifier: between the 64 penultimate features of samples and of the "
        f"{measured['samples']['reference_images']} training images; lower is better. ± is the standard error over seeds, "
        "where there are several.",
        "sampler": f"ode: probability-flow ODE on a fixed grid of {config.sampling.ode_steps_per_gamma:g} steps per unit of "
        f"gamma. heun: Heun's method on EDM's noise grid of {config.sampling.heun_steps} nodes, with the switch as one more "
        "node; the EDM's own row ends with an Euler step to zero noise. ancestral: "
        f"{config.sampling.ancestral_steps} uniform steps in gamma. Decoder: {config.sampling.decoder}.",
    }


def notes(setup, measured) -> list[str]:
    """What a reader must know besides the table."""
    proposal, samples = measured["proposal"], measured["samples"]
    floor = samples["floor"]
    said = []
    if not proposal["merge"]:
        said.append(
            "On the validation images no merge has a bound below both experts' by more than its paired error: these "
            "experts do not complement each other, and the thresholds propose no merge."
        )
    said.append(
        f"The thresholds were proposed from the bounds of {int(proposal['n_images'])} validation images: "
        f"{proposal['best']:.3f} is the best bound's, {proposal['cautious']:.3f} the smallest within one paired standard "
        "error of it."
    )
    said.append(
        f"Distances depend on the number of images. {floor['n_images']} test images, whose classes are equally frequent, "
        f"have {floor['distance']:.3f}; with classes as they come, {floor['at_test_count']:.3f} is expected of "
        f"{floor['n_images']} real images and, extrapolated, {floor['at_sample_count']:.3f} of as many as there are "
        "samples per seed. The column frechet_at_test_count of results.csv has the samples' distance at "
        f"{floor['n_images']} images."
    )
    everything = [arrays for *_, arrays in models(measured)]
    failed = sum(int(np.sum(~np.asarray(a["ok"]))) for a in everything)
    refined = max(int(np.sum(a["refined"])) for a in everything)
    solves = sum(len(a["ok"]) for a in everything)
    said.append(
        f"{failed} of {solves} likelihood solves failed; "
        + (
            f"{refined} images were solved again on a finer grid."
            if refined
            else "no image needed a finer grid."
        )
    )
    weights = proposal["weights"]
    said.append(
        "Diffusion term on the validation images by the best expert per noise level: "
        f"{weights['best_single_bpd']:.4f} bpd; by the best convex weights {weights['convex_bpd']:.4f}, by the best affine "
        f"weights {weights['affine_bpd']:.4f}. They are fitted to these images and optimal for the bound only."
    )
    return said


def pictures(setup, etas, measured, columns: int) -> dict[str, np.ndarray]:
    """Samples from the same noise: both experts, and merges spread over the thresholds."""
    stage = next(
        (
            s
            for name, s in measured["samples"].items()
            if name.startswith("samples_") and len(s["etas"]) == len(etas) and "EDM" in s["pictures"]
        ),
        next((s for name, s in measured["samples"].items() if name.startswith("samples_")), None),
    )
    if stage is None:
        return {}
    proposal = measured["proposal"]
    spread = np.unique(np.linspace(0, len(stage["etas"]) - 1, SHOWN_MERGES).round().astype(int))
    near = [int(np.argmin(np.abs(stage["etas"] - proposal[k]))) for k in ("best", "cautious")]
    chosen = sorted({*spread.tolist(), *near})
    names = [("EDM", "EDM")] if "EDM" in stage["pictures"] else []
    names += [(f"eta_{i}", f"η = {stage['etas'][i]:.3f}") for i in chosen]
    names += [("VDM", "VDM")] if "VDM" in stage["pictures"] else []
    return {
        "samples": np.stack([stage["pictures"][key][:columns] for key, _ in names]),
        "sample_labels": np.array([label for _, label in names]),
        "data": setup.test.images[:columns],
    }
