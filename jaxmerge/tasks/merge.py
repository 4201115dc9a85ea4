"""The paper's experiment: two experts, every merge of them, likelihood and sample quality.

The order is the order of honesty. Thresholds are proposed from validation images, the solver's grid is
chosen on training images, and only then the test images are looked at, once.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxmerge import likelihood, noise, sampling, sweeps, thresholds, vlb
from jaxmerge import probability_flow as flow
from jaxmerge.data import Dataset, load
from jaxmerge.experts import io
from jaxmerge.experts.base import Expert
from jaxmerge.likelihood import Likelihood
from jaxmerge.merge import Switch, eta_range
from jaxmerge.metrics import classifier, frechet
from jaxmerge.run import Run
from jaxmerge.tasks import summary

# Step controls whose density is chosen on training images.
GRIDS = {"fixed": flow.FixedGrid, "multistep": flow.MultistepGrid}
GRID_IMAGES = 32


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every stage needs.

    Attributes:
        low, high: the experts, called "VDM" and "EDM" in the results.
        train, validation, test: images.
        keys: one key per use.
        candidates: thresholds that a proposal may take.
        fixed_etas: thresholds that are measured whatever is proposed.
    """

    low: Expert
    high: Expert
    train: Dataset
    validation: Dataset
    test: Dataset
    keys: dict[str, jax.Array]
    candidates: list[float]
    fixed_etas: list[float]

    def gamma(self, eta: float) -> float:
        """The noise level of a threshold."""
        return noise.gamma_of_eta(eta, self.low.gamma_range[0], self.high.gamma_range[1])


def run(config: ConfigDict, run: Run) -> None:
    """Proposes thresholds, measures, and writes results and report."""
    setup = prepare(config)
    proposal = propose(config, run, setup)
    etas = sorted({*setup.fixed_etas, proposal["best"], proposal["cautious"]})
    grid = run.stage("grid", functools.partial(choose_grid, config, setup, proposal["best"]))
    settings, refinement = likelihood_settings(config, grid)
    measured = {
        "etas": etas,
        "proposal": proposal,
        "grid": grid,
        "likelihood": measure_likelihoods(config, run, setup, etas, settings, refinement),
        "alignment": measure_alignment(config, run, setup, proposal["best"], settings, refinement),
        "bound": measure_bound(config, run, setup, etas),
        "samples": measure_samples(config, run, setup, etas, proposal),
    }
    results, pictures = summary.summarise(config, setup, measured)
    run.finish(results, pictures)


def prepare(config: ConfigDict) -> Setup:
    """Experts, images and keys.

    Raises:
        ValueError: experts or images that do not fit each other, a threshold that the experts do not
            allow, or counts that the data set does not have.
    """
    low, high = load_expert(config.experts.low), load_expert(config.experts.high)
    if hasattr(high, "align_pixel_scale"):
        high = high.replace(align_pixel_scale=config.experts.align_pixel_scale)
    lowest, highest = eta_range(low, high)
    train = load(config.data.name, config.data.train_split)
    Switch(low, high, 0.5 * (lowest + highest)).pixel_scale.check(train.images[:1], low.image_shape)
    asked = tuple(config.merge.etas)
    fixed = thresholds.standard_etas(low, high) if asked == ("auto",) else [float(eta) for eta in asked]
    for eta in fixed:
        Switch(low, high, eta)  # refuses what the experts do not allow, before anything is computed
    step = config.merge.candidate_step
    inner = np.arange(np.ceil(lowest / step), np.floor(highest / step) + 1) * step
    inner = [round(float(eta), 6) for eta in inner if lowest < eta < highest]
    candidates = sorted({lowest, highest, *inner, *fixed})
    check_late_stages(config)
    key = jax.random.key(config.seed)
    uses = ("proposal", "grid", "likelihood", "bound", "sampling")
    test = load(config.data.name, config.data.test_split)
    test.take(max(config.likelihood.n_images, config.bound.n_images))
    return Setup(
        low,
        high,
        train,
        load(config.data.name, config.data.validation_split),
        test,
        {use: jax.random.fold_in(key, i) for i, use in enumerate(uses)},
        candidates,
        fixed,
    )


def check_late_stages(config: ConfigDict) -> None:
    """Refuses now what a later stage would refuse after minutes of work."""
    if config.likelihood.draws != 1:
        raise ValueError(
            f"likelihood.draws must be 1 in a sweep over thresholds, got {config.likelihood.draws}; score single "
            "merges with several draws by jaxmerge.evaluate."
        )
    likelihood_settings(config, {"steps_per_gamma": 1.0, "error_scale": 1.0})
    for sampler in config.sampling.sampler:
        sampler_settings(config, sampler)
    load_classifier(config.metric.classifier)


def load_classifier(name: str) -> classifier.DigitsClassifier:
    """The shipped digits classifier by name, or any by the path of its checkpoint."""
    if name == "digits_classifier":
        return classifier.load_digits_classifier()
    return classifier.load_classifier(name)


def load_expert(name: str) -> Expert:
    """A shipped expert by name, or any by the path of its checkpoint."""
    return io.shipped(name) if name in io.shipped_names() else io.load_expert(name)


def error_curves(config, run: Run, setup: Setup, data: Dataset, what: str, key: jax.Array) -> vlb.Curves:
    """Both experts' error curves on some images; always the same strata, so that one program serves."""
    with run.progress(len(data) * config.bound.repeats, what) as advance:
        return vlb.error_curves(
            {"VDM": setup.low, "EDM": setup.high},
            data.images,
            key=key,
            thresholds=[setup.gamma(eta) for eta in setup.candidates],
            index=data.index,
            per_interval=config.bound.n_times,
            repeats=config.bound.repeats,
            batch_size=config.bound.batch_size,
            advance=advance,
        )


def propose(config: ConfigDict, run: Run, setup: Setup) -> dict[str, Any]:
    """Error curves on validation images, and what they propose."""
    data = setup.validation

    def compute():
        curves = error_curves(config, run, setup, data, "error curves", setup.keys["proposal"])
        found = thresholds.propose(curves, setup.candidates)
        weights = thresholds.best_weights(curves)
        return {
            **found._asdict(),
            "curve_gamma": curves.centres,
            "curve_density": curves.density(),
            "weights": weights._asdict(),
            "n_images": len(data),
        }

    return run.stage("proposal", compute)


def choose_grid(config: ConfigDict, setup: Setup, eta: float) -> dict[str, Any]:
    """The fixed grid of the likelihood, by doubling on training images."""
    if config.likelihood.control not in GRIDS:
        return {"steps_per_gamma": 0.0, "error_scale": 1.0}
    data = setup.train.take(GRID_IMAGES)
    chosen = likelihood.choose_grid(
        Switch(setup.low, setup.high, eta),
        data.images,
        key=setup.keys["grid"],
        tolerance=config.likelihood.tolerance,
        settings=likelihood_settings(config, {"steps_per_gamma": 1.0, "error_scale": 1.0})[0],
        batch_size=GRID_IMAGES,
    )
    return {
        "steps_per_gamma": chosen.control.steps_per_gamma,
        "error_scale": chosen.refinement.error_scale,
        "densities": chosen.densities,
        "mean_change": chosen.mean_change,
        "max_change": chosen.max_change,
        "n_images": chosen.n_images,
    }


def likelihood_settings(config: ConfigDict, grid) -> tuple[likelihood.Settings, likelihood.Refinement | None]:
    """The config's likelihood on a chosen grid.

    Raises:
        ValueError: an unknown kind of step control, or several draws (a sweep takes one).
    """
    asked = config.likelihood
    controls = {
        **{name: kind(float(grid["steps_per_gamma"])) for name, kind in GRIDS.items()},
        "per_image": flow.PerImage(asked.rtol, asked.atol),
        "batch": flow.BatchCoupled(asked.rtol, asked.atol),
    }
    if asked.control not in controls:
        raise ValueError(f"likelihood.control must be one of {', '.join(controls)}, got {asked.control!r}.")
    settings = likelihood.Settings(
        control=controls[asked.control],
        dequantization=asked.dequantization,
        trace=asked.trace,
        probes=asked.probes,
    )
    if asked.control not in GRIDS:
        return settings, None
    return settings, likelihood.Refinement(asked.image_tolerance, float(grid["error_scale"]))


def as_arrays(result: Likelihood) -> dict[str, np.ndarray]:
    """A likelihood as a stage's dictionary."""
    return {name: np.asarray(value) for name, value in result._asdict().items()}


def as_likelihood(arrays: dict[str, np.ndarray]) -> Likelihood:
    """The inverse of `as_arrays`."""
    return Likelihood(**arrays)


def measure_likelihoods(config, run, setup, etas, settings, refinement) -> dict[str, Any]:
    """Exact likelihoods of both experts and of every merge on test images."""
    data = setup.test.take(config.likelihood.n_images)
    common = dict(
        key=setup.keys["likelihood"],
        index=data.index,
        refinement=refinement,
        batch_size=config.likelihood.batch_size,
    )

    def compute():
        with run.progress(len(data), "likelihoods") as advance:
            found = sweeps.sweep_likelihood(
                setup.low, setup.high, etas, data.images, settings=settings, advance=advance, **common
            )
        return {
            "VDM": as_arrays(found.low),
            "EDM": as_arrays(found.high),
            "merged": {str(i): as_arrays(r) for i, r in enumerate(found.merged)},
            "calls": found.calls,
            "calls_apart": found.calls_apart,
        }

    def uniform():
        return as_arrays(
            likelihood.evaluate(
                setup.high, data.images, settings=settings.replace(dequantization="uniform"), **common
            )
        )

    measured = run.stage("likelihood", compute)
    measured["EDM_uniform"] = run.stage("likelihood_uniform", uniform)
    return measured


def measure_alignment(config, run, setup, eta, settings, refinement) -> dict[str, Any]:
    """bpd with and without pixel-scale alignment, on the same images and noise."""
    count = min(config.likelihood.alignment_images, config.likelihood.n_images)
    if count == 0 or not getattr(setup.high, "align_pixel_scale", False):
        return {}
    data = setup.test.take(count)

    def compute():
        listing = setup.high.replace(align_pixel_scale=False)
        gamma = setup.gamma(eta)
        models = {"EDM": listing, "merged": Switch(setup.low, listing, gamma=gamma)}
        with run.progress(2 * len(data), "without alignment") as advance:
            return {
                name: as_arrays(
                    likelihood.evaluate(
                        model,
                        data.images,
                        key=setup.keys["likelihood"],
                        index=data.index,
                        settings=settings,
                        refinement=refinement,
                        batch_size=config.likelihood.batch_size,
                        advance=advance,
                    )
                )
                for name, model in models.items()
            }

    return run.stage("alignment", compute)


def measure_bound(config, run, setup, etas) -> dict[str, Any]:
    """The bound of both experts and of every merge on test images: terms per image."""
    data = setup.test.take(config.bound.n_images)

    def compute():
        curves = error_curves(config, run, setup, data, "bounds", setup.keys["bound"])
        return {
            "VDM": curves.single(0),
            "EDM": curves.single(1),
            "merged": {str(i): curves.switch(setup.gamma(eta)) for i, eta in enumerate(etas)},
        }

    return run.stage("bound", compute)


def measure_samples(config, run, setup, etas, proposal) -> dict[str, Any]:
    """Samples of every model and sampler, as features and a few pictures."""
    network = load_classifier(config.metric.classifier)
    reference = frechet.statistics(classifier.features(network, setup.train.images), name="training set")
    models = {"EDM": setup.high, "VDM": setup.low}
    measured: dict[str, Any] = {"reference_images": len(setup.train)}
    for sampler in config.sampling.sampler:
        settings = sampler_settings(config, sampler)
        for seed, swept, count in sample_plan(config.sampling, sampler, etas, proposal):
            name = f"samples_{sampler}_{seed}_{len(swept)}x{count}"
            slots = len(etas) if sampler != "ancestral" or len(swept) > 1 else 1
            compute = functools.partial(
                draw, config, run, setup, models, swept, slots, count, settings, seed, network, reference
            )
            measured[name] = run.stage(name, compute)
    test = classifier.features(network, setup.test.images)
    train = classifier.features(network, setup.train.images)
    floor = frechet.frechet_floor(train, test, test_labels=setup.test.labels)
    n = len(setup.test)
    measured["floor"] = {"distance": floor.distance, "at_test_count": floor.at(n), "n_images": n}
    measured["floor"]["at_sample_count"] = floor.at(config.sampling.n_samples)
    return measured


def sample_plan(asked: ConfigDict, sampler: str, etas, proposal) -> list[tuple[int, list[float], int]]:
    """(seed, thresholds, images) of every set of samples of one sampler; each also has both experts.

    All seeds have the proposed thresholds; the others come along in the first `seeds_other` seeds where
    the number of images is the same, else in a set of their own.
    """
    ancestral = sampler == "ancestral"
    count = asked.ancestral_samples if ancestral else asked.n_samples
    seeds = asked.ancestral_seeds if ancestral else asked.seeds
    others = asked.ancestral_samples_other if ancestral else asked.n_samples_other
    proposed = sorted({float(proposal["cautious"]), *([] if ancestral else [float(proposal["best"])])})
    plan = []
    for seed in range(seeds if count else 0):
        with_others = seed < asked.seeds_other and others == count
        plan.append((seed, etas if with_others else proposed, count))
    if others not in (0, count):
        plan += [(seed, etas, others) for seed in range(asked.seeds_other)]
    return plan


def sampler_settings(config: ConfigDict, sampler: str) -> sampling.Settings:
    """The config's settings of one sampler."""
    steps = config.sampling.ancestral_steps if sampler == "ancestral" else config.sampling.heun_steps
    return sampling.Settings(
        sampler=sampler,
        steps=steps,
        control=flow.FixedGrid(config.sampling.ode_steps_per_gamma),
        decoder=config.sampling.decoder,
    )


def draw(config, run, setup, models, etas, slots, count, settings, seed, network, reference) -> dict[str, Any]:
    """One seed's samples of the single experts and of the merges, scored."""
    key = jax.random.fold_in(setup.keys["sampling"], seed)
    common = dict(key=key, batch_size=config.sampling.batch_size)
    found: dict[str, Any] = {}
    units = count * (len(models) + 1)
    with run.progress(units, f"samples, {settings.sampler}, seed {seed}") as advance:
        for name, model in models.items():
            own = settings
            if name == "EDM" and settings.sampler == "heun":
                own = settings.replace(final="denoise")  # EDM's own sampler ends at sigma = 0
            images, nfe = sampling.generate(model, count, settings=own, advance=advance, **common)
            found[name] = (images, float(nfe.mean()))
        swept = sweeps.sweep_samples(
            setup.low, setup.high, etas, count, settings=settings, slots=slots, advance=advance, **common
        )
    merged = list(zip(swept.images, swept.nfe, strict=True))
    found |= {f"eta_{i}": pair for i, pair in enumerate(merged)}
    scored = {name: score(images, nfe, network, reference, len(setup.test)) for name, (images, nfe) in found.items()}
    columns = config.report.columns
    shown = {name: images[:columns] for name, (images, _) in found.items()}
    return {"etas": np.asarray(etas, np.float64), "count": count, "scores": scored, "pictures": shown}


def score(images, nfe: float, network, reference, test_count: int) -> dict[str, float]:
    """Distance and classifier score of one set of samples."""
    features = classifier.features(network, images)
    scores = {
        "nfe": nfe,
        "frechet": frechet.frechet_distance(frechet.statistics(features, name="samples"), reference),
        "classifier_score": classifier.classifier_score(network, images),
    }
    if len(images) >= test_count:
        scores["frechet_at_test_count"] = float(np.mean(frechet.subset_distances(reference, features, test_count)))
    return scores
