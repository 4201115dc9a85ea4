"""Shared set-up: tests run on the CPU unless told otherwise, in float32, with shape annotations checked."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# Rooms of plain functions. The others define pytrees, whose leaves JAX replaces with all kinds of
# placeholders that no annotation could list.
install_import_hook(
    ["jaxmerge.decoder", "jaxmerge.dequantize", "jaxmerge.multistep", "jaxmerge.noise"], "beartype.beartype"
)
