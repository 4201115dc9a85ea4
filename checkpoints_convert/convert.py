"""From a source to an expert's checkpoint, on the host, whole or not at all."""

import contextlib
import ctypes
import functools
import gc
import importlib.metadata
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import yaml
from flax import nnx

from checkpoints_convert import arrival, kinds, metrics, readers, registry
from checkpoints_convert.names import origins
from checkpoints_convert.places import no_new_folders, sha256
from jaxmerge import checkpoint
from jaxmerge.data.check import UNKNOWN, canonical
from jaxmerge.experts import io
from jaxmerge.experts.base import Expert

_CONVENTIONS = {"edm": "2 i / (levels - 1) - 1", "vdm": "2 (i + 1/2) / levels - 1"}


class Backbone(NamedTuple):
    """The second file, where LPIPS comes in two: where it is, what is in it, and its entry in the registry."""

    path: pathlib.Path
    contents: readers.Contents
    entry: registry.Entry | None = None


class Options(NamedTuple):
    """How a file is to be read.

    Attributes:
        kind: one of `kinds.KINDS`, or None to find out.
        weights: "ema" or "online"; None for the file's own choice, "ema" where it has both.
        config: path of a torch VDM's config.yaml; None takes the one beside the file, if there is one.
        size: height and width of a VDM's images; None for 32.
        backbone: the file with the backbone of LPIPS, where it is not in the first.
        data_set: what the network was trained on, where neither the file nor the registry says it.
    """

    kind: str | None = None
    weights: str | None = None
    config: str | None = None
    size: int | None = None
    backbone: Backbone | None = None
    data_set: str | None = None


class Loaded(NamedTuple):
    """A file, read and filled in.

    Attributes:
        source: what the file is, without its arrays.
        net: the network with the file's weights.
        record: what is stored with it.
        frame: the expert around an abstract network, whose construction takes seconds; None for a metric's network.
    """

    source: kinds.Source
    net: nnx.Module
    record: dict[str, Any]
    frame: Expert | None

    @property
    def expert(self) -> Expert | None:
        """The network as an expert; None where it is not one (Inception, LPIPS)."""
        return None if self.frame is None else self.frame.replace(net=self.net)


def load(
    path: pathlib.Path,
    contents: readers.Contents,
    options: Options,
    entry: registry.Entry | None = None,
) -> Loaded:
    """Recognises what a file holds and fills a network with its arrays, each exactly once.

    Args:
        path: a local file.
        contents: what `readers.read` found in it.
        options: how to read it.
        entry: its entry in the registry, for data set and licence.

    Raises:
        ValueError: anything that keeps the file from being one of the known networks.
    """
    with _named(path):
        source = _source(path, contents, options, entry)
        frame = None if source.kind in metrics.KINDS else _built(source)
        net = _filled(metrics.build(source.description) if frame is None else frame.net, source)
        record = _record(path, contents, source, net, entry, options)
    return Loaded(source._replace(arrays={}), _owned(net), record, frame)


def _source(path, contents, options: Options, entry: registry.Entry | None) -> kinds.Source:
    kind = options.kind or (entry.kind if entry is not None else None)
    config = functools.partial(_config, path, options.config)
    backbone = None if options.backbone is None else options.backbone.contents
    asked = kinds.Asked(kind, options.weights, options.size, config, options.config is not None, backbone)
    return kinds.recognise(contents, asked)


def _filled(net: nnx.Module, source: kinds.Source) -> nnx.Module:
    return origins.fill(net, source.arrays, source.origin, left_out=source.left_out)


def _owned(net: nnx.Module) -> nnx.Module:
    """The network without views of the file, whose pages can then be given back before the writing starts."""
    return jax.tree.map(lambda a: a if a.flags.writeable else a.copy(), net)


def placed(loaded: Loaded) -> Loaded:
    """The same with its network on the device, for the self-check; the caller lets go of the copy on the host."""
    return loaded._replace(net=jax.device_put(loaded.net))


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"cannot convert {path.name}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        # What no public file holds, but a damaged one may.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"cannot convert {path.name}: its contents do not fit together ({reason})."
        ) from error


def _built(source: kinds.Source) -> Expert:
    try:
        return io.build(source.description)
    except (ValueError, TypeError, ZeroDivisionError, ArithmeticError) as error:
        raise ValueError(
            f"its architecture cannot be built ({' '.join(str(error).split())[:200]})."
        ) from error


def _config(path: pathlib.Path, given: str | None) -> dict[str, Any] | None:
    """The settings in a config.yaml, given or beside the file.

    Raises:
        ValueError: a given file that is missing, or one that is no YAML mapping.
    """
    chosen = pathlib.Path(given) if given else path.parent / "config.yaml"
    if not given and not chosen.is_file():
        return None
    try:
        if chosen.stat().st_size > 2**20:
            raise ValueError("it is larger than 1 MB")
        config = yaml.safe_load(chosen.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise ValueError(
            f"cannot read {chosen} as settings: {reason}; give the right file with --config."
        ) from error
    return config


def _record(path, contents, source: kinds.Source, net, entry, options: Options) -> dict[str, Any]:
    carried, backbone = source.carried, options.backbone
    data_set = entry.data_set if entry else carried.get("data_set", UNKNOWN)
    licence = entry.licence if entry else carried.get("licence", registry.UNKNOWN)
    origin = {"kind": source.kind, **_file(path, contents, entry)}
    if backbone is not None:
        licence += f"; its backbone: {backbone.entry.licence if backbone.entry else registry.UNKNOWN}"
        origin["backbone"] = _file(*backbone)
    return {
        "network" if source.kind in metrics.KINDS else "expert": source.description,
        **_ranges(source.description),
        "parameters": count(net),
        "data_set": _data_set(data_set, options.data_set),
        "weights": carried.get("weights", source.weights),
        "training_step": carried.get("training_step", source.step),
        "licence": licence,
        "source": origin,
        "learned_schedule": source.learned,
        "notes": list(source.notes),
        "converter": f"jaxmerge {importlib.metadata.version('jaxmerge')}",
    }


def _data_set(known: str, given: str | None) -> str:
    """What a network was trained on: what is known, else what is given.

    Raises:
        ValueError: the two contradict each other.
    """
    if given is None or canonical(known) == canonical(given):
        return known
    if canonical(known) != UNKNOWN:
        raise ValueError(f"it was trained on {known}, but --data-set says {given}; leave --data-set out.")
    return given


def _file(path: pathlib.Path, contents: readers.Contents, entry: registry.Entry | None) -> dict[str, Any]:
    """What identifies a file."""
    return {
        "container": contents.container,
        "name": entry.name if entry else None,
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
    }


def _ranges(description: dict[str, Any]) -> dict[str, Any]:
    """Native range in the network's own coordinate, and its pixel scale."""
    kind = description["kind"]
    if kind not in _CONVENTIONS:
        return {}
    coordinate, key = ("sigma_edm", "sigma_range") if kind == "edm" else ("gamma", "native_range")
    low, high = description[key]
    return {
        "native_range": {"coordinate": coordinate, "low": low, "high": high},
        "pixel_scale": {"levels": description["levels"], "level_i_is": _CONVENTIONS[kind]},
    }


def count(net: nnx.Module) -> int:
    """Number of parameters, buffers included."""
    return sum(int(np.prod(shape)) for shape in origins.parameter_paths(net).values())


def check(
    loaded: Loaded, path: pathlib.Path, options: Options, entry: registry.Entry | None = None
) -> tuple[str, tuple[str, ...]]:
    """The self-check of an expert, or of a metric's network: its outcome in one line, and warnings.

    Args:
        loaded: what `load` returned, on the device.
        path, options, entry: what it was called with.

    Raises:
        ValueError: predictions that are not finite, or a metric's network that measures nonsense.
    """
    if loaded.expert is None:
        return metrics.check(loaded.source.description, loaded.net), ()
    found = arrival.examine(labelled(loaded.expert), loaded.source.readings)
    if found.warnings and loaded.source.other_weights:
        other = "ema" if options.weights == "online" else "online"
        levels = arrival.measure(labelled(_with_weights(loaded, path, options, entry, other)))[0]
        if arrival.score(levels) < min(arrival.TRAINED, arrival.BETTER * found.score):
            warning = f"the file's other weights denoise better: convert with --weights {other}"
            found = found._replace(warnings=(*found.warnings, warning))
    _give_memory_back()
    return found.summary(), found.warnings


def _give_memory_back() -> None:
    """The compiled check takes as much memory as the weights, which are still to be written."""
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed; other systems do not have this


def _with_weights(loaded: Loaded, path, options: Options, entry, weights: str) -> Expert:
    """The expert of the other set of weights; in the same frame, so that nothing is built or compiled anew."""
    with _named(path):
        source = _source(path, readers.read(path), options._replace(weights=weights), entry)
        same = source.description == loaded.source.description
        frame = loaded.frame if same else _built(source)
        return frame.replace(net=_owned(_filled(frame.net, source)))


def labelled(expert: Expert) -> Expert:
    """A conditional expert for its class 0, any other as it is."""
    return expert if expert.classes is None else expert.with_labels(0)


def write(dest: pathlib.Path, loaded: Loaded, *, overwrite: bool) -> None:
    """Writes the checkpoint; on any failure, an interrupt included, DEST and its parents are as before.

    Raises:
        ValueError: DEST exists, or cannot be written.
        OSError: no space or no permission.
    """
    with no_new_folders(dest):
        arrays = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(loaded.net)))
        checkpoint.save(dest, arrays, loaded.record, overwrite=overwrite)
