"""The stage that measures what sampling costs: time per image, network calls, memory, parameters."""

from typing import Any

import jax
from ml_collections import ConfigDict

from jaxmerge import sampling
from jaxmerge.experts.base import Expert
from jaxmerge.merge import Switch
from jaxmerge.metrics import cost
from jaxmerge.run import Run
from jaxmerge.tasks.samples import sampler_settings, settings_of
from jaxmerge.tasks.setup import Setup


def of_sampling(
    model: Expert, key: jax.Array, settings: sampling.Settings, *, batch_size: int, repeats: int
) -> dict[str, Any]:
    """Latency in seconds per image, network calls, planned memory of one call and parameters, as a stage keeps them.

    A number that the backend does not tell is -1.
    """
    spent = cost.sampling_cost(model, batch_size, key=key, settings=settings, repeats=repeats)
    return {
        "latency": spent.latency.median,
        "latency_low": spent.latency.quartiles[0],
        "latency_high": spent.latency.quartiles[1],
        "latency_definition": spent.latency.definition,
        "nfe": spent.nfe,
        "planned_bytes": spent.call.planned_bytes or -1,
        "parameters": spent.parameters.count,
    }


def measure(config: ConfigDict, run: Run, setup: Setup, eta: float) -> dict[str, Any]:
    """Costs of both experts and their merge at `eta`, sampling by the first sampler.

    Returns:
        {"models": {model: costs}, "host_peak", "device_peak"}: the peaks in bytes are the process's since its last start.
    """
    asked = config.cost
    settings = sampler_settings(config, config.sampling.sampler[0])
    models = {"EDM": setup.high, "merged": Switch(setup.low, setup.high, eta), "VDM": setup.low}

    def compute() -> dict[str, Any]:
        found = {}
        with run.progress(len(models), "cost of sampling", unit="models") as advance:
            for name, model in models.items():
                found[name] = of_sampling(
                    model,
                    setup.keys["sampling"],
                    settings_of(name, settings),
                    batch_size=asked.batch_size,
                    repeats=asked.repeats,
                )
                advance(1)
        peak = cost.memory()
        return {"models": found, "host_peak": peak.host_peak or -1, "device_peak": peak.device_peak or -1}

    return run.stage("cost", compute)


def entries(found: dict[str, Any], eta: float) -> list[dict[str, Any]]:
    """One row per model; what the backend did not tell is None."""
    rows = []
    for name, values in found["models"].items():
        told = {key: None if value == -1 else value for key, value in values.items()}
        rows.append({"model": name, "eta": eta if name == "merged" else None} | told)
    return rows
