"""From the command line to a finished run: one sentence for every error, an orderly stop, a warm start."""

import errno
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

from jaxmerge import settings

PACKAGES = (
    *("jaxmerge", "jax", "jaxlib", "flax", "optax", "diffrax", "orbax-checkpoint"),
    *("ml-collections", "numpy", "scikit-learn", "matplotlib"),
)


STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived; a KeyboardInterrupt, so that libraries let it pass."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def main(argv: list[str]) -> int:
    """Runs a command line.

    Args:
        argv: program name and arguments.

    Returns:
        The exit code: 0, 1 for an error that one sentence on stderr explains, 128 + the signal's
        number (130, 143) for a run that was stopped.
    """
    catch_signals()
    show_traceback = "--traceback" in argv
    try:
        execute(settings.parse(argv))
        return 0
    except settings.HelpAsked as answer:
        print(answer)
        return 0
    except KeyboardInterrupt as stop:
        release_signals()  # a training that was stopped has put `stop` back
        number = getattr(stop, "number", signal.SIGINT)
        word = "stopped" if number == signal.SIGTERM else "interrupted"
        print(f"{word}; give the same command again and the run continues where it was.", file=sys.stderr)
        return 128 + number
    except (ValueError, OSError, MemoryError) as error:
        if show_traceback:
            traceback.print_exc()
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 1


def execute(asked: settings.Settings) -> None:
    """Starts, continues or shows the run that was asked for."""
    from jaxmerge import parallel  # after the command line is known to be good: JAX takes time to import
    from jaxmerge.run import Run

    parallel.use_all_cores()
    config = asked.config
    with Run(
        asked.workdir,
        config.to_dict(),
        name=asked.name,
        command=asked.command,
        environment=lambda: environment(config.seed),
    ) as run:
        if run.results is None:
            if enable_compilation_cache() is None:
                run.log("the compilation cache cannot be written, so every start compiles anew")
            import jax

            from jaxmerge import tasks

            jax.config.update("jax_default_matmul_precision", config.precision)
            tasks.run(config, run)
        run.show()


def catch_signals() -> None:
    """Makes Ctrl-C and SIGTERM raise `Stopped` once; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        return

    def stop(number, frame):
        release_signals()
        raise Stopped(number)

    for number in STOPPING:
        signal.signal(number, stop)


def release_signals() -> None:
    """Makes the next Ctrl-C or SIGTERM end the process at once."""
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            signal.signal(number, signal.SIG_DFL)


def sentence(error: BaseException) -> str:
    """What went wrong and what to do, in one line."""
    if isinstance(error, OSError):
        place = f" {error.filename}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"no space left to write{place}; free some and give the same command again, what is already "
                "computed is kept."
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"no permission to use{place}; choose another folder with --workdir or change its permissions."
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            return (
                f"cannot write{place}, a file is where a folder is needed; choose another one with --workdir."
            )
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "?", "!")) else text + "."


def enable_compilation_cache() -> Path | None:
    """Keeps compiled programs in the user's cache folder, so that later starts are faster.

    The folder is ``JAX_COMPILATION_CACHE_DIR`` if set, else ``jaxmerge/xla`` in ``XDG_CACHE_HOME`` or
    ``~/.cache``. Must be called before the first compilation.

    Returns:
        The folder, or None where none can be written; then JAX goes on without.
    """
    import jax

    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES" not in os.environ:
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def cache_folder() -> Path:
    """Where compiled programs are kept; RuntimeError where the user has no home."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "jaxmerge" / "xla"


def environment(seed: int) -> dict[str, Any]:
    """Versions, machine, devices, seed and git revision, for the run's record."""
    from jaxmerge import parallel

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "devices": parallel.describe_devices(),
        "seed": seed,
        "revision": revision(),
    }


def revision() -> str | None:
    """The git revision of this source tree, with a plus where it has changes; None without git."""
    folder = Path(__file__).resolve().parent

    def git(*arguments):
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # An installed package may lie inside some other repository, which then says nothing about it.
        git("ls-files", "--error-unmatch", "app.py")
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
