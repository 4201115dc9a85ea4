"""jaxmerge: merge pretrained diffusion experts without training.

    >>> import jax, jaxmerge
    >>> merged = jaxmerge.Switch(jaxmerge.shipped("digits_vdm"), jaxmerge.shipped("digits_edm"), eta=0.3)
    >>> images, nfe = jax.jit(jaxmerge.sample)(merged, jax.numpy.arange(16), key=jax.random.key(0))
    >>> result = jax.jit(jaxmerge.log_likelihood)(merged, images, key=jax.random.key(0))

The names in ``__all__`` and the rooms of the library (``jaxmerge.data``, ``jaxmerge.likelihood``, ...) are
imported when they are first used, so that ``import jaxmerge`` and a mistyped command line cost nothing.
"""

import importlib

__version__ = "0.1.0"

# Public names and where they live.
_NAMES = {
    "Expert": "experts.base",
    "VDM": "experts.vdm",
    "EDM": "experts.edm",
    "shipped": "experts.io",
    "load_expert": "experts.io",
    "save_expert": "experts.io",
    "Switch": "merge",
    "Mixture": "merge",
    "eta_range": "merge",
    "Gate": "gate.network",
    "Gated": "gate.gated",
    "share_trunk": "experts.adapters",
    "PixelScale": "noise",
    "FixedGrid": "probability_flow",
    "MultistepGrid": "probability_flow",
    "PerImage": "probability_flow",
    "BatchCoupled": "probability_flow",
    "sample": "sampling",
    "generate": "sampling",
    "log_likelihood": "likelihood",
    "evaluate": "likelihood",
    "mean_bpd": "likelihood",
    "paired_difference": "likelihood",
    "bound": "vlb",
    "error_curves": "vlb",
    "propose": "thresholds",
    "best_weights": "thresholds",
    "sweep_likelihood": "sweeps",
    "sweep_samples": "sweeps",
}
_ROOMS = (
    *("noise", "parallel", "checkpoint", "experts", "merge", "gate", "decoder", "dequantize"),
    *(
        "multistep",
        "probability_flow",
        "likelihood",
        "grids",
        "sampling",
        "vlb",
        "thresholds",
        "sweeps",
        "data",
        "metrics",
    ),
)

__all__ = sorted(_NAMES)


def __getattr__(name: str):
    if name in _NAMES:
        value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
