"""A made-up run for the tests of the report: no measurement, only the shape of one."""

import numpy as np

ETAS = (0.052, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.774)
LIKELIHOOD_TERMS = ("prior", "divergence", "entropy", "normalisation")


def fake_results(bpd_at_proposed: float = 1.785, frechet_at_proposed: float = 0.31) -> dict:
    """Rows, curves and terms of a run whose proposed thresholds are 0.2 and 0.3."""
    rows = []
    for sampler in ("heun", "ancestral"):
        rows.append(row("EDM", None, 1.907, 0.30, sampler))
        rows.append(row("VDM", None, 1.852, 1.03, sampler))
        for eta in ETAS:
            bpd = bpd_at_proposed + 0.4 * (eta - 0.25) ** 2
            frechet = frechet_at_proposed + 2.0 * max(eta - 0.3, 0.0)
            if sampler == "heun" or eta in (0.2, 0.3):
                rows.append(row("merged", eta, bpd, frechet, sampler))
    rows.append(row("EDM", None, 1.95, None, None) | {"dequantization": "uniform"})
    gamma = np.linspace(-7.864, 8.764, 60)
    vdm = 0.3 * np.exp(-((gamma + 3) ** 2) / 12)
    edm = np.where(gamma > -6.99, vdm + 0.01 * np.tanh(-(gamma + 4)), np.nan)
    eta = np.linspace(0.052, 0.774, 40)
    return {
        "title": "Digits, merged",
        "levels": 17,
        "gamma_range": [-7.864, 8.764],
        "rows": rows,
        "proposed": {"best_bound": 0.3, "cautious": 0.2},
        "paired": [
            {
                "model_a": ["merged", 0.2],
                "model_b": "VDM",
                "difference": bpd_at_proposed - 1.852,
                "se": 0.004,
                "n_images": 180,
            },
            {
                "model_a": "EDM",
                "model_b": ["merged", 0.2],
                "difference": 1.907 - bpd_at_proposed,
                "se": 0.006,
                "n_images": 180,
            },
        ],
        "curves": {
            "gamma": gamma,
            "experts": {"VDM": np.where(gamma < 5, vdm, np.nan), "EDM": edm},
            "ranges": {"VDM": [-7.864, 5.0], "EDM": [-6.994, 8.764]},
        },
        "bound_by_eta": {
            "eta": eta,
            "bpd": 1.8 + 0.4 * (eta - 0.28) ** 2,
            "se": np.full(40, 0.004),
            "split": "validation",
        },
        "weights": {
            "gamma": gamma,
            "experts": ["VDM", "EDM"],
            "affine": np.stack([1 / (1 + np.exp(gamma + 4)), 1 / (1 + np.exp(-gamma - 4))], axis=1),
            "convex": np.stack([gamma < -4, gamma >= -4], axis=1).astype(float),
        },
        "terms": [
            {
                "model": model,
                "eta": eta,
                "likelihood": dict(zip(LIKELIHOOD_TERMS, (2.05, 3.2, -3.6, 0.15), strict=True)),
                "bound": {"prior": 0.001, "reconstruction": 0.05, "diffusion": 1.74},
            }
            for model, eta in (("EDM", None), ("merged", 0.2), ("merged", 0.3), ("VDM", None))
        ],
        "alignment": [
            {
                "model": "EDM",
                "eta": None,
                "aligned": 1.907,
                "listing": 1.941,
                "difference": 0.034,
                "se": 0.003,
            },
        ],
        "floor": {"frechet": 0.12, "frechet_se": 0.01, "n_images": 360},
        "notes": ["Two images of 180 were solved again on a finer grid."],
        "environment": {"versions": {"jax": "0.10.2"}, "devices": "1 x cpu", "seed": 0},
        "timings": {"likelihood": 61.2, "sampling": 80.1},
        "config": {"seed": 0, "sampling": {"seeds": 3}},
        "command": "python main.py --config configs/digits_merge.py",
    }


def row(model, eta, bpd, frechet, sampler) -> dict:
    """One row of results.json."""
    return {
        "model": model, "eta": eta, "bpd": bpd, "bpd_se": 0.021, "vlb": bpd + 0.02, "vlb_se": 0.022,
        "frechet": frechet, "frechet_se": None if frechet is None else 0.02, "nfe_likelihood": 100,
        "nfe_sampling": 35 if sampler == "heun" else 256, "sampler": sampler, "n_images": 180,
        "n_samples": 1000 if sampler == "heun" else 500, "split": "test",
    }  # fmt: skip


def fake_pictures() -> dict:
    """Samples of three models from the same noise, and real images."""
    levels = np.random.default_rng(0).integers(0, 17, (4, 12, 8, 8, 1)).astype(np.uint8)
    return {"samples": levels[:3], "sample_labels": ["EDM", "η = 0.2", "VDM"], "data": levels[3]}
