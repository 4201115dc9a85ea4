"""jaxmerge: merge pretrained diffusion experts without training."""

__version__ = "0.1.0"
