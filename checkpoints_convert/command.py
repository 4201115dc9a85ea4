"""The command line: convert, inspect, list, export; one sentence for every error.

Only what the command line needs is imported at first, so that a mistake is answered at once.
"""

import argparse
import contextlib
import errno
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator

from checkpoints_convert import registry

DESCRIPTION = "Turns public checkpoints into experts of jaxmerge. Nothing in a file is ever executed."
EXAMPLES = """examples:
  python -m checkpoints_convert edm-cifar10-32x32-uncond-vp checkpoints/edm_cifar10
  python -m checkpoints_convert path/or/url/to/file DEST
  python -m checkpoints_convert --inspect FILE
  python -m checkpoints_convert --export checkpoints/edm_cifar10 edm.safetensors
  python -m checkpoints_convert --list
"""


def parser() -> argparse.ArgumentParser:
    """The arguments; docs/checkpoints.md explains them at length."""
    found = argparse.ArgumentParser(
        prog="python -m checkpoints_convert",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("source", nargs="?", metavar="SOURCE", help="a short name (--list), a URL or a file")
    add("dest", nargs="?", metavar="DEST", help="the checkpoint's folder to write")
    add("--inspect", metavar="FILE", help="print what a file (or URL, or short name) holds; write nothing")
    add("--export", nargs=2, metavar=("EXPERT", "FILE"), help="write an expert as FILE.safetensors")
    add("--list", action="store_true", help="show the known public files")
    add("--name", help="the short name of a public file that was downloaded by hand")
    add("--kind", help="force the kind of checkpoint (i-DODE's files need it: idode-vp, idode-sp)")
    add("--weights", choices=("ema", "online"), default="ema", help="which weights to take (default: ema)")
    add("--config", metavar="FILE", help="config.yaml of a PyTorch VDM (default: the one beside the file)")
    add("--size", type=int, default=32, help="height and width of a VDM's images (default: 32)")
    add("--overwrite", action="store_true", help="replace what is at DEST")
    add("--cache", metavar="DIR", help="where downloads are kept (default: the user's cache folder)")
    add("--no-check", action="store_true", help="skip the self-check")
    add("--traceback", action="store_true", help="show the Python traceback of an error")
    return found


def main(argv: list[str]) -> int:
    """Runs a command line.

    Args:
        argv: arguments without the program's name.

    Returns:
        The exit code: 0, 1 for an error that one sentence on stderr explains, 2 for a wrong command line,
        130 or 143 for one that was stopped.
    """
    arguments = parser().parse_intermixed_args(argv)
    try:
        with _stoppable():
            run(arguments)
        return 0
    except _Stopped as stop:
        print("\ninterrupted; nothing was written.", file=sys.stderr)
        return 128 + stop.number
    except (ValueError, OSError, MemoryError) as error:
        if arguments.traceback:
            traceback.print_exc()
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace) -> None:
    """Does what the arguments ask.

    Raises:
        ValueError: arguments that do not fit together, or whatever keeps the job from being done.
    """
    asked = [name for name in ("inspect", "export", "list") if getattr(arguments, name)]
    given = [arguments.source is not None, arguments.dest is not None]
    if len(asked) > 1 or (asked and any(given)) or (not asked and not all(given)):
        raise ValueError(
            "give SOURCE and DEST, or one of --inspect FILE, --export EXPERT FILE and --list; --help shows examples."
        )
    if not 1 <= arguments.size <= 4096:
        raise ValueError(f"--size must be from 1 to 4096, got {arguments.size}.")
    if arguments.list:
        print(listing())
    elif arguments.export:
        export(*arguments.export, overwrite=arguments.overwrite)
    elif arguments.inspect:
        inspect(arguments)
    else:
        convert(arguments)


def convert(arguments: argparse.Namespace) -> None:
    """SOURCE to DEST."""
    from checkpoints_convert import readers, references
    from checkpoints_convert.places import check_free

    start = time.perf_counter()
    dest = pathlib.Path(arguments.dest).expanduser()
    check_free(dest, overwrite=arguments.overwrite)
    path, entry = local(arguments.source, arguments)
    if (
        arguments.kind == "fid-reference"
        or (entry and entry.kind == "fid-reference")
        or references.recognised(path)
    ):
        record = references.convert(path, dest, entry)
        print(f"wrote {dest}: mean and covariance of {record['features']} features of {record['data_set']}")
        print(f"  SHA-256    {record['source']['sha256']}\n  licence    {record['licence']}")
        return
    contents = readers.read(path)
    # After the file is known to be good: JAX takes time to import.
    import jax

    from checkpoints_convert import convert as steps

    options = steps.Options(arguments.kind, arguments.weights, arguments.config, arguments.size)
    loaded = steps.load(path, contents, options, entry)
    del contents  # the file's pages, which are needed no more
    warnings: tuple[str, ...] = ()
    verdict = "skipped"
    if not arguments.no_check:
        loaded = steps.placed(loaded)
        found = steps.check(loaded, path, options)
        jax.clear_caches()  # the compiled check is as large as the weights, which are still to be written
        verdict = "passed; features are finite and of the usual scale" if found is None else found.summary()
        warnings = () if found is None else found.warnings
        loaded.record["self_check"] = {"summary": verdict, "warnings": list(warnings)}
    steps.write(dest, loaded, overwrite=arguments.overwrite)
    print(f"wrote {dest} in {time.perf_counter() - start:.1f} s")
    print(table({**facts(loaded.record), "self-check": verdict}))
    show_notes(loaded.record["notes"])
    for warning in warnings:
        print(f"warning: {warning}.", file=sys.stderr)


def inspect(arguments: argparse.Namespace) -> None:
    """What a file holds, on the terminal."""
    from checkpoints_convert import readers, references

    path, entry = local(arguments.inspect, arguments)
    if references.recognised(path):
        mu, _ = references.read(path)
        print(f"{path.name}: reference statistics for FID, mean and covariance of {len(mu)} features")
        return
    contents = readers.read(path)
    from checkpoints_convert import convert as steps

    options = steps.Options(arguments.kind, arguments.weights, arguments.config, arguments.size)
    loaded = steps.load(path, contents, options, entry)
    print(f"{path.name}: a {loaded.record['source']['container']}")
    print(table(facts(loaded.record)))
    show_notes(loaded.record["notes"])


def export(name: str, file: str, *, overwrite: bool) -> None:
    """An expert to a safetensors file."""
    from checkpoints_convert.export import export as write

    notes = write(name, pathlib.Path(file).expanduser(), overwrite=overwrite)
    print(f"wrote {file}")
    show_notes(notes)


def local(source: str, arguments: argparse.Namespace) -> tuple[pathlib.Path, registry.Entry | None]:
    """The local file of a SOURCE, downloaded if it is none yet, and its entry in the registry.

    Raises:
        ValueError: no such file, name or address, or no way to fetch it.
    """
    from checkpoints_convert import download

    path = pathlib.Path(source).expanduser()
    named = registry.find(arguments.name) if arguments.name else None
    if download.is_url(source):
        entry, url = named or registry.by_file_name(source.rsplit("/", 1)[-1]), source
    elif path.is_file() or path.suffix or path.name != source:
        return path, _compared(path, named or registry.by_file_name(path.name))
    else:
        entry = registry.find(source)
        url = entry.url
        if not url:
            raise ValueError(
                f"{source} cannot be downloaded by a program. {entry.by_hand} Then convert the local file: python -m "
                f"checkpoints_convert FILE DEST --name {entry.name}"
            )

    def announce():
        if entry is not None:
            print(f"downloading {entry.name} ({entry.data_set}). Licence: {entry.licence}.", flush=True)

    expected = entry.sha256 if entry is not None and entry.url == url else None
    folder = pathlib.Path(arguments.cache) if arguments.cache else download.cache_folder()
    return download.fetch(url, folder, sha256=expected, announce=announce), entry


def _compared(path: pathlib.Path, entry: registry.Entry | None) -> registry.Entry | None:
    """The entry of a local file, if the file's SHA-256 is the one in the registry, where that has one."""
    from checkpoints_convert.places import sha256

    if entry is not None and entry.sha256 and path.is_file() and (found := sha256(path)) != entry.sha256:
        raise ValueError(
            f"{path} is called {entry.name}, but has another SHA-256 (expected {entry.sha256}, got {found}); it is "
            "damaged or another file: download it again, or rename it."
        )
    return entry


def facts(record: dict) -> dict[str, str]:
    """What a record says, in the words of the command line."""
    description = record.get("expert") or record["network"]
    source, native = record["source"], record.get("native_range")
    architecture = ", ".join(f"{k}={v}" for k, v in description.get("architecture", {}).items())
    kind = source["kind"]
    if description["kind"] == "edm":
        network, preconditioner = description.get("network", "song"), description.get("preconditioner", "edm")
        kind += f" ({network}, {preconditioner} preconditioning)"
    elif "prediction" in description:
        kind += f" (predicts {description['prediction']}, {description['schedule']} schedule)"
    found = {
        "kind": kind,
        "network": architecture or "Inception-v3",
        "parameters": f"{record['parameters']:,}".replace(",", " "),
    }
    if native:
        scale = record["pixel_scale"]
        found["native range"] = f"{native['coordinate']} {native['low']:.6g} to {native['high']:.6g}"
        found["pixel scale"] = f"{scale['levels']} levels, level i is {scale['level_i_is']}"
        found["images"] = "x".join(map(str, description["shape"]))
    step = record["training_step"]
    return found | {
        "weights": record["weights"] + ("" if step is None else f", step {step}"),
        "data set": record["data_set"],
        "SHA-256": source["sha256"],
        "licence": record["licence"],
    }


def table(rows: dict[str, str]) -> str:
    """Two columns."""
    return "\n".join(f"  {name:<13} {value}" for name, value in rows.items())


def show_notes(notes: list[str]) -> None:
    """What was assumed or left out."""
    for note in notes:
        print(f"note: {note}.")


def listing() -> str:
    """The registry, one file per line."""
    width = max(map(len, registry.ENTRIES))
    lines = []
    for entry in registry.ENTRIES.values():
        where = "" if entry.url else " Not fetched by the command: see docs/checkpoints.md."
        lines.append(f"{entry.name:<{width}}  {entry.data_set}. {entry.note}{where}")
    return "\n".join(lines)


def sentence(error: BaseException) -> str:
    """What went wrong and what to do, in one line."""
    if isinstance(error, OSError) and error.errno:
        place = f" {error.filename}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space left to write{place}; free some and try again."
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"no permission to use{place}; choose another place or change its permissions."
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            return f"cannot write{place}, a file is where a folder is needed; choose another place."
    if isinstance(error, MemoryError):
        return "there is not enough memory to convert the file; use a machine with more."
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "?", "!")) else text + "."


class _Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM raise, so that half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise _Stopped(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
