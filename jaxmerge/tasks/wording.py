"""What the numbers of a run mean, in words: definitions of its columns and remarks for its readers."""

from typing import Any

import numpy as np


def definitions(config, setup, measured) -> dict[str, str]:
    """What the columns mean in this run."""
    said = {}
    if "likelihood" in measured:
        said["bpd"] = likelihood_definition(config, measured["grid"])
    if "bound" in measured:
        said["vlb"] = (
            f"Variational lower bound of {config.bound.n_images} {config.data.test_split} images in continuous time, "
            f"{config.bound.n_times} stratified noise levels per image between neighbouring candidate thresholds, "
            f"{config.bound.repeats} repeats. Another model (the SDE) of the same network: no order between the two "
            "is implied for trained networks."
        )
    if setup.judge is not None:
        said |= score_definitions(config, setup.judge, measured)
    said["sampler"] = (
        f"ode: probability-flow ODE on a fixed grid of {config.sampling.ode_steps_per_gamma:g} steps per unit of "
        f"gamma. heun: Heun's method on EDM's noise grid of {config.sampling.heun_steps} nodes, with the switch as "
        "one more node; the EDM's own row ends with an Euler step to zero noise. ancestral: "
        f"{config.sampling.ancestral_steps} uniform steps in gamma. Decoder: {config.sampling.decoder}."
    )
    return said


def all_scores(measured) -> list[dict[str, float]]:
    """The scores of every model and set of samples."""
    stages = [stage for name, stage in measured.get("samples", {}).items() if name != "floor"]
    return [scores for stage in stages for scores in stage["scores"].values()]


def score_definitions(config, judge, measured) -> dict[str, str]:
    """What the scores of samples are: those that were measured, with the samples' numbers and seeds."""
    there = {column for scores in all_scores(measured) for column in scores}
    drawn = sample_counts(config, measured)
    return {
        column: f"{text} {drawn}".strip()
        for column, text in judge.definitions.items()
        if column in {judge.names.column, *there}
    }


def sample_counts(config, measured) -> str:
    """How many samples of every sampler there are per seed, and which seeds; empty without samples."""
    groups: dict[tuple[str, int], dict[int, bool]] = {}
    for name, stage in measured.get("samples", {}).items():
        if name == "floor":
            continue
        _, sampler, seed, *_ = name.split("_")
        swept = len(stage["etas"]) == len(measured["etas"])
        groups.setdefault((sampler, int(stage["count"])), {})[int(seed)] = swept
    said = []
    for (sampler, count), seeds in groups.items():
        swept = [seed for seed, whole in seeds.items() if whole]
        text = f"{sampler}, {count} per seed, seeds {listed(seeds)}"
        if len(swept) < len(seeds):
            text += f" ({f'seeds {listed(swept)}' if swept else 'none'} for thresholds that are not proposed)"
        said.append(text)
    if not said:
        return ""
    return (
        f"Samples: {'; '.join(said)}, all of the run's seed {config.seed}; ± is the standard error over seeds, where "
        "there are several."
    )


def listed(seeds) -> str:
    """Numbers of seeds in words."""
    return ", ".join(str(seed) for seed in sorted(seeds))


def likelihood_definition(config, grid) -> str:
    """How the exact likelihood was computed."""
    asked = config.likelihood
    density = f"of {float(grid['steps_per_gamma']):g} steps per unit of gamma"
    if "n_images" in grid:
        density += f", chosen on {grid['n_images']} training images so that doubling it changes the mean by less than "
        density += f"{asked.tolerance:g} bpd"
    else:
        density += ", given by the config and not checked for its error"
    tolerance = f"rtol {asked.rtol:g}, atol {asked.atol:g}"
    control = {
        "fixed": f"a fixed Bogacki-Shampine grid {density}",
        "multistep": f"a fixed Adams-Bashforth grid {density}",
        "per_image": f"adaptive RK45, each image its own steps, {tolerance}",
        "batch": f"adaptive RK45, one step size per batch of {asked.batch_size}, {tolerance}",
    }[asked.control]
    trace = "exact trace" if asked.trace == "exact" else f"{asked.probes} Rademacher probe(s) per image"
    return (
        f"Exact likelihood of {config.data.test_split} images by the probability-flow ODE, in bits per dimension: "
        f"{asked.dequantization.replace('_', '-')} dequantisation, {trace}, {control}, float32 with full-precision "
        "matrix products. ± is the standard error over images; models share images, dequantisation noise and "
        "probes, so that their differences are far more certain than the values."
    )


def reconstruction_definition(config, found) -> str:
    """How reconstructions were made and compared."""
    one = found["definition"]
    what = one[one.index(";") + 1 :].strip()
    return (
        f"Test images after noise of level γ and one denoising call, as grey levels, against the originals; the same "
        f"noise for all models: {what}. At one γ a merge is one of its experts: the one that it asks there."
    )


def cost_definition(config, spent: list[dict[str, Any]], found: dict[str, Any]) -> str:
    """What the costs are, and the run's peaks of memory."""
    peaks = [
        f"{found[key] / 2**20:,.0f} MiB {what}"
        for key, what in (("host_peak", "of the process"), ("device_peak", "of a device's allocator"))
        if found[key] != -1
    ]
    return (
        f"Sampling by {config.sampling.sampler[0]}: {spent[0]['latency_definition']} (the table has milliseconds). Memory "
        "is what XLA plans for one call of all networks of the model on the batch. Peaks of the process until then, "
        f"since its last start: {', '.join(peaks) or 'not told by the system'}."
    )


def notes(setup, measured) -> list[str]:
    """What a reader must know besides the table."""
    said = []
    if measured.get("proposal") is not None:
        said += proposal_notes(measured["proposal"])
    floor = measured.get("samples", {}).get("floor")
    if floor is not None and "at_test_count" in floor:
        said.append(
            f"Distances depend on the number of images. {floor['n_images']} test images, whose classes are equally "
            f"frequent, have {floor['distance']:.3f}; with classes as they come, {floor['at_test_count']:.3f} is "
            f"expected of {floor['n_images']} real images and, extrapolated, {floor['at_sample_count']:.3f} of as many "
            "as there are samples per seed."
        )
        if any("frechet_at_test_count" in scores for scores in all_scores(measured)):
            said[-1] += (
                " The column frechet_at_test_count of results.csv has the samples' distance at "
                f"{floor['n_images']} images."
            )
    if "likelihood" in measured:
        said.append(solve_note(measured["likelihood"]))
    return said if setup.judge is None else said + setup.judge.notes


def proposal_notes(proposal) -> list[str]:
    """What the validation images say of the thresholds and of weights instead of thresholds."""
    said = []
    if not proposal["merge"]:
        said.append(
            "On the validation images no merge has a bound below both experts' by more than its paired error: these "
            "experts do not complement each other, and the thresholds propose no merge."
        )
    weights = proposal["weights"]
    return [
        *said,
        f"The thresholds were proposed from the bounds of {int(proposal['n_images'])} validation images: "
        f"{proposal['best']:.3f} is the best bound's, {proposal['cautious']:.3f} the smallest within one paired "
        "standard error of it.",
        "Diffusion term on the validation images by the best expert per noise level: "
        f"{weights['best_single_bpd']:.4f} bpd; by the best convex weights {weights['convex_bpd']:.4f}, by the best "
        f"affine weights {weights['affine_bpd']:.4f}. They are fitted to these images and optimal for the bound only.",
    ]


def solve_note(found: dict[str, Any]) -> str:
    """How many solves failed and how many were repeated."""
    everything = [found["EDM"], *found["merged"].values(), found["VDM"]]
    failed = sum(int(np.sum(~np.asarray(a["ok"]))) for a in everything)
    refined = max(int(np.sum(a["refined"])) for a in everything)
    solves = sum(len(a["ok"]) for a in everything)
    again = (
        f"{refined} images were solved again on a finer grid" if refined else "no image needed a finer grid"
    )
    return f"{failed} of {solves} likelihood solves failed; {again}."
