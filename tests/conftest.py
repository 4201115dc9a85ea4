"""Shared set-up: tests run on the CPU unless told otherwise, in float32 unless a test switches float64 on."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
