"""The command line: convert, inspect, list, export; one sentence for every error.

Only what the command line needs is imported at first, so that a mistake is answered at once.
"""

import argparse
import os
import pathlib
import signal
import sys
import time
import traceback

from checkpoints_convert import registry
from checkpoints_convert.stopping import Stopped, identity, module, stoppable
from checkpoints_convert.words import facts, listing, sentence, show_notes, table

DESCRIPTION = "Turns public checkpoints into experts of jaxmerge. Nothing in a file is ever executed."
EXAMPLES = """examples:
  python -m checkpoints_convert edm-cifar10-32x32-uncond-vp checkpoints/edm_cifar10
  python -m checkpoints_convert path/or/url/to/file DEST
  python -m checkpoints_convert lpips-alex checkpoints/lpips_alex --backbone torchvision-alexnet
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
    add("--weights", choices=("ema", "online"), help="which weights to take (default: ema)")
    add("--config", metavar="FILE", help="config.yaml of a PyTorch VDM (default: the one beside the file)")
    add("--size", type=int, help="height and width of a VDM's images (default: 32)")
    add("--backbone", metavar="FILE", help="torchvision's AlexNet or VGG16, for the linear layers of LPIPS")
    add("--data-set", metavar="NAME", help="what it was trained on, where neither file nor registry says it")
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
        130 or 143 for one that was stopped, 141 where nobody reads the output any more.
    """
    arguments = parser().parse_intermixed_args(argv)
    target = arguments.export[1] if arguments.export else arguments.dest
    before = identity(target)
    try:
        with stoppable():
            run(arguments)
            sys.stdout.flush()
        return 0
    except Stopped as stop:
        written = target is not None and identity(target) not in (None, before)
        print(f"\ninterrupted; {target if written else 'nothing'} was written.", file=sys.stderr)
        return 128 + stop.number
    except BrokenPipeError:
        # Whoever read the output has gone; what Python still has of it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
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
    if arguments.size is not None and not 1 <= arguments.size <= 4096:
        raise ValueError(f"--size must be from 1 to 4096, got {arguments.size}.")
    if arguments.kind not in (None, *registry.KINDS, registry.REFERENCE):
        raise ValueError(f"--kind must be one of {', '.join(registry.KINDS)}, got {arguments.kind!r}.")
    if arguments.data_set is not None and not arguments.data_set.strip():
        raise ValueError(
            "--data-set must name a data set, got an empty name; leave it out if it is not known."
        )
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
    from checkpoints_convert.places import check_free, check_same, is_checkpoint

    start = time.perf_counter()
    dest = pathlib.Path(arguments.dest).expanduser()
    check_free(dest, overwrite=arguments.overwrite)
    path, entry = local(arguments.source, arguments.name, arguments.cache)
    if _is_reference(path, entry, arguments):
        record = module("references").convert(path, dest, entry)
        print(f"wrote {dest}: mean and covariance of {record['features']} features of {record['data_set']}")
        print(f"  SHA-256    {record['source']['sha256']}\n  licence    {record['licence']}")
        return
    check_same(dest, is_checkpoint, "a checkpoint")
    steps, loaded, options = _loaded(path, entry, arguments)
    warnings: tuple[str, ...] = ()
    verdict = "skipped"
    if not arguments.no_check:
        loaded = steps.placed(loaded)
        verdict, warnings = steps.check(loaded, path, options, entry)
        loaded.record["self_check"] = {"summary": verdict, "warnings": list(warnings)}
    steps.write(dest, loaded, overwrite=arguments.overwrite)
    print(f"wrote {dest} in {time.perf_counter() - start:.1f} s")
    print(table({**facts(loaded.record), "self-check": verdict}))
    show_notes(loaded.record["notes"])
    for warning in warnings:
        print(f"warning: {warning}.", file=sys.stderr)


def inspect(arguments: argparse.Namespace) -> None:
    """What a file holds, on the terminal."""
    path, entry = local(arguments.inspect, arguments.name, arguments.cache)
    if _is_reference(path, entry, arguments):
        mu, _ = module("references").read(path)
        print(f"{path.name}: reference statistics for FID, mean and covariance of {len(mu)} features")
        return
    _, loaded, _ = _loaded(path, entry, arguments)
    print(f"{path.name}: {loaded.record['source']['container']}")
    print(table(facts(loaded.record)))
    show_notes(loaded.record["notes"])


def _loaded(path: pathlib.Path, entry: registry.Entry | None, arguments: argparse.Namespace) -> tuple:
    """`checkpoints_convert.convert`, the `Loaded` of a file, and the `Options` it was loaded with."""
    contents, backbone = module("readers").read(path), None
    if arguments.backbone is not None:
        second, known = local(arguments.backbone, None, arguments.cache)
        backbone = (second, module("readers").read(second), known)
    steps = module("convert")  # after the files are known to be good: JAX takes time to import
    given = (arguments.kind, arguments.weights, arguments.config, arguments.size)
    beside = None if backbone is None else steps.Backbone(*backbone)
    options = steps.Options(*given, beside, arguments.data_set and arguments.data_set.strip())
    return steps, steps.load(path, contents, options, entry), options


def _is_reference(path: pathlib.Path, entry: registry.Entry | None, arguments: argparse.Namespace) -> bool:
    """Whether a file holds FID reference statistics, or is said to.

    Raises:
        ValueError: it does, and something was said that they have no use for.
    """
    kind = arguments.kind or (entry.kind if entry else None)
    if kind != registry.REFERENCE and not module("references").recognised(path):
        return False
    options = ("weights", "config", "size", "backbone", "data_set")
    said = [f"--{name.replace('_', '-')}" for name in options if getattr(arguments, name) is not None]
    if kind not in (None, registry.REFERENCE):
        said.append("--kind" if arguments.kind else "--name")
    if said:
        raise ValueError(f"{path.name} holds reference statistics for FID; leave {', '.join(said)} out.")
    return True


def export(name: str, file: str, *, overwrite: bool) -> None:
    """An expert to a safetensors file."""
    notes = module("export").export(name, pathlib.Path(file).expanduser(), overwrite=overwrite)
    print(f"wrote {file}")
    show_notes(notes)


def local(source: str, name: str | None, cache: str | None) -> tuple[pathlib.Path, registry.Entry | None]:
    """The local file of a SOURCE, downloaded if it is none yet, and its entry in the registry.

    Args:
        source: a short name, a URL or a path.
        name: the short name of a file that was downloaded by hand.
        cache: folder of all downloads; None for the user's own.

    Raises:
        ValueError: no such file, name or address, or no way to fetch it.
    """
    download = module("download")
    path = pathlib.Path(source).expanduser()
    named = registry.find(name) if name else None
    if download.is_url(source):
        entry, url = named or registry.by_url(source), source
    elif os.path.lexists(path) or path.suffix or path.name != source:
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
    folder = pathlib.Path(cache) if cache else download.cache_folder()
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
