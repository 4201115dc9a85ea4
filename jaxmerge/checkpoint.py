"""Checkpoints: a tree of arrays in Orbax's format with a human-readable record beside it.

A checkpoint is a directory::

    metadata.json    the caller's record (architecture, command, seed, losses, ...), plain JSON
    arrays/          the tree's leaves, host numpy, written by Orbax
    integrity.json   size and SHA-256 of every file of arrays/

Only this module knows Orbax. Four of Orbax's habits (0.12) are handled here: it takes absolute paths
only; arrays that were saved from several devices load only on as many (so host numpy goes in and
comes out); another dtype is silently cast; and its mismatch errors name no parameter. A leaf's name
is its path in the tree, so any pytree (Flax modules, optax states, dataclasses) is stored as a nested
dictionary and comes back in the structure of the template.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import signal
import threading
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

ARRAYS = "arrays"
METADATA = "metadata.json"
INTEGRITY = "integrity.json"


def save(path: str | os.PathLike, tree: PyTree, metadata: dict[str, Any], *, overwrite: bool = False) -> None:
    """Writes a checkpoint atomically: `path` holds a complete checkpoint or is as it was before.

    Args:
        path: the directory to create; its parents are created too.
        tree: a pytree of arrays; device arrays are copied to the host.
        metadata: JSON-serialisable record, stored as ``metadata.json``.
        overwrite: replace an existing checkpoint, which stays in place until the new one is complete.

    Raises:
        ValueError: `path` exists and `overwrite` is False or it is no checkpoint, the metadata is not JSON, a
            leaf is not a numeric array, or Orbax could not write.
        OSError: no space or no permission, with the checkpoint's path.
    """
    path = _absolute(path)
    if not overwrite and (os.path.lexists(path) or _set_aside(path).exists()):
        raise ValueError(
            f"the checkpoint {path} already exists; choose another path or pass overwrite=True to replace it."
        )
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not exists(path)):
        raise ValueError(
            f"{path} is not a checkpoint, so it is not replaced; choose another path, or remove it."
        )
    try:
        text = json.dumps(metadata, indent=2) + "\n"
    except TypeError as error:
        raise ValueError(f"the metadata of the checkpoint {path} must be plain JSON: {error}.") from None
    named = {name: np.asarray(leaf) for name, leaf in _named(tree).items()}
    odd = sorted(name for name, leaf in named.items() if leaf.dtype.kind in "OSU")
    if odd or not named:
        raise ValueError(
            f"the checkpoint {path} needs numeric arrays, got {', '.join(odd) or 'an empty tree'}; put words "
            "and settings into the metadata."
        )
    staging = path.with_name(f".{path.name}.tmp")
    try:
        _write(staging, named, text)
        with _uninterrupted():
            _replace(staging, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:  # Orbax reports a full disk in several types
        raise ValueError(
            f"cannot write the checkpoint {path}: {_one_line(error)}; check the free space and the "
            "permissions of its folder."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write(staging: pathlib.Path, named: dict[str, np.ndarray], text: str) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    with _quiet(), _uninterrupted():
        context = _orbax().Context()
        # Nobody changes the arrays meanwhile, so Orbax needs no copy of them all.
        context.memory.deepcopy_host_arrays = False
        with context:
            _orbax().save(staging / ARRAYS, _nest(named))
    # Orbax notes the folder's absolute path there, which is nobody's business in a shipped checkpoint.
    for note in (staging / ARRAYS).glob("commit_success.txt"):
        note.write_text("committed\n")
    (staging / METADATA).write_text(text)
    (staging / INTEGRITY).write_text(json.dumps(_fingerprints(staging / ARRAYS), indent=1) + "\n")


def load(path: str | os.PathLike, template: PyTree) -> PyTree:
    """Reads a checkpoint into the structure of `template`.

    Args:
        path: a directory written by `save`.
        template: a pytree whose leaves have ``shape`` and ``dtype`` (arrays, or what
            ``jax.eval_shape`` returns).

    Returns:
        The template's structure with numpy leaves, equal bit for bit to what was saved.

    Raises:
        ValueError: missing, not a checkpoint, damaged, or made for another tree; the last names every
            parameter that differs.
    """
    path = _existing(path)
    _check_integrity(path)
    wanted = _named(template)
    try:
        with _quiet():
            stored = _named(_orbax().metadata(path / ARRAYS).metadata)
    except Exception as error:
        raise _damaged(path, _one_line(error)) from error
    differences = _differences(wanted, stored)
    if differences:
        raise ValueError(
            f"the checkpoint {path} does not fit the model it is loaded into: {'; '.join(differences)}; "
            "build the model with the architecture recorded in its metadata.json."
        )
    targets = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
    try:
        with _quiet():
            loaded = _named(_orbax().load(path / ARRAYS, _nest(targets)))
    except Exception as error:
        raise _damaged(path, _one_line(error)) from error
    return jax.tree.unflatten(jax.tree.structure(template), [loaded[name] for name in wanted])


def load_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The record stored with a checkpoint.

    Raises:
        ValueError: missing, not a checkpoint, or a damaged record.
    """
    path = _existing(path)
    try:
        metadata = json.loads((path / METADATA).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path, f"{METADATA}: {_one_line(error)}") from error
    if not isinstance(metadata, dict):
        raise _damaged(path, f"{METADATA} is not a JSON object")
    return metadata


def exists(path: str | os.PathLike) -> bool:
    """Whether `path` holds a checkpoint (complete or damaged)."""
    return any((p / METADATA).is_file() for p in (_absolute(path), _set_aside(_absolute(path))))


def remove(path: str | os.PathLike) -> None:
    """Deletes a checkpoint, if there is one; of a link to one, the link."""
    path = _absolute(path)
    _discard(_set_aside(path))
    _discard(path)


def _orbax():
    # Imported at first use: it takes a second, and building experts in memory needs none of it.
    from orbax.checkpoint import v1

    return v1


@contextlib.contextmanager
def _quiet():
    # Orbax logs every failure of its threads with a traceback; the one sentence raised here replaces them.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _uninterrupted():
    """Lets signals wait until the end of the block.

    Orbax writes in threads, which an exception here would not stop: they would go on in a folder that is
    being removed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A handler that was not set from Python cannot be put back.
    before = {number: handler for number, handler in before.items() if handler is not None}
    for number in before:
        signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)


def _absolute(path) -> pathlib.Path:
    return pathlib.Path(os.path.abspath(os.path.expanduser(path)))


def _set_aside(path: pathlib.Path) -> pathlib.Path:
    # Where the old checkpoint waits between the two renames of an overwrite.
    return path.with_name(f".{path.name}.old")


def _replace(staging: pathlib.Path, path: pathlib.Path) -> None:
    aside = _set_aside(path)
    if os.path.lexists(path):
        _discard(aside)
        path.rename(aside)
    staging.rename(path)
    _discard(aside)


def _discard(path: pathlib.Path) -> None:
    # A link goes, and not what it leads to.
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _existing(path) -> pathlib.Path:
    path = _absolute(path)
    if not path.exists() and _set_aside(path).exists():
        return _set_aside(path)  # killed between the two renames of an overwrite
    if not path.exists():
        raise ValueError(f"there is no checkpoint at {path}; check the path or train one first.")
    if not (path / METADATA).is_file() and not (path / ARRAYS).is_dir():
        raise ValueError(
            f"{path} is not a checkpoint of this package (a directory with {METADATA} and {ARRAYS}/); "
            "public checkpoints have to be converted first."
        )
    return path


def _damaged(path: pathlib.Path, reason: str) -> ValueError:
    return ValueError(f"the checkpoint {path} is damaged ({reason}); copy it again or train it anew.")


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".;:")[:200]


def _fingerprints(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files
    }


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_integrity(path: pathlib.Path) -> None:
    try:
        expected = json.loads((path / INTEGRITY).read_text())
        for name, record in expected.items():
            file = path / ARRAYS / name
            if not file.is_file():
                raise _damaged(path, f"{ARRAYS}/{name} is missing")
            if file.stat().st_size != record["bytes"]:
                raise _damaged(path, f"{ARRAYS}/{name} has {file.stat().st_size} of {record['bytes']} bytes")
            if _sha256(file) != record["sha256"]:
                raise _damaged(path, f"{ARRAYS}/{name} has changed since it was written")
    except (OSError, json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise _damaged(path, f"{INTEGRITY}: {_one_line(error)}") from error


def _named(tree: PyTree) -> dict[str, Any]:
    # A Flax variable adds a last component "value", which is no part of the parameter's name.
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = [
        jax.tree_util.keystr(keys, simple=True, separator="/").removesuffix("/value") for keys, _ in leaves
    ]
    return dict(zip(names, (leaf for _, leaf in leaves), strict=True))


def _nest(named: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, leaf in named.items():
        *folders, last = name.split("/")
        node = nested
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = leaf
    return nested


def _differences(wanted: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    differences = [f"{name} is missing from the checkpoint" for name in sorted(wanted.keys() - stored.keys())]
    differences += [f"{name} is unknown to the model" for name in sorted(stored.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & stored.keys()):
        ours, theirs = _describe(wanted[name]), _describe(stored[name])
        if ours != theirs:
            differences.append(f"{name} should be {ours}, the checkpoint has {theirs}")
    return differences


def _describe(leaf) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
