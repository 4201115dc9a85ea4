"""Shared set-up: tests run on the CPU unless told otherwise, in float32, with shape annotations checked."""

import os
import signal
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
from jaxtyping import install_import_hook

# Rooms of plain functions. The others define pytrees, whose leaves JAX replaces with all kinds of
# placeholders that no annotation could list.
install_import_hook(
    ["jaxmerge.decoder", "jaxmerge.dequantize", "jaxmerge.multistep", "jaxmerge.noise"], "beartype.beartype"
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """The test works in its own folder, with its own cache, and gives JAX and the signals back."""
    import jax

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.syspath_prepend(str(ROOT))
    names = (
        "jax_compilation_cache_dir",
        "jax_default_matmul_precision",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    for number, handler in handlers.items():
        signal.signal(number, handler)
