"""Files and folders: what may be written where, and what is left when something fails."""

import contextlib
import errno
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator

# What `jaxmerge.checkpoint` writes; not imported from there, since JAX would come with it.
CHECKPOINT = {"metadata.json", "integrity.json", "arrays"}
# Longest name of a DEST in bytes; file systems allow 255, and files beside it have longer names meanwhile.
_NAME = 230


def sha256(path: pathlib.Path) -> str:
    """A file's SHA-256, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def no_new_folders(dest: pathlib.Path) -> Iterator[None]:
    """Removes on failure the parents of `dest` that were not there before."""
    missing = [parent for parent in dest.absolute().parents if not parent.exists()]
    try:
        yield
    except BaseException:
        for parent in missing:  # the innermost first
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def check_free(dest: pathlib.Path, *, overwrite: bool) -> None:
    """Refuses a DEST that must not or cannot be written, before anything is fetched.

    Raises:
        ValueError: something is there, and either it is not to be replaced or it is neither a checkpoint nor
            an npz file; or DEST is below a file, or has no name or one that is too long.
        OSError: DEST's nearest existing folder is closed to writing.
    """
    if not dest.name or any(len(os.fsencode(part)) > _NAME for part in dest.parts):
        raise ValueError(
            f"DEST must be a path with names of at most {_NAME} bytes, got {str(dest)[:80]!r}; choose another one."
        )
    parent = next(folder for folder in dest.absolute().parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(parent))
    if not os.path.lexists(dest):
        return
    if not overwrite:
        raise ValueError(f"{dest} already exists; give another DEST, or --overwrite to replace it.")
    check_same(dest, lambda path: is_checkpoint(path) or is_npz(path), "a checkpoint")


def check_same(dest: pathlib.Path, same: Callable[[pathlib.Path], bool], what: str) -> None:
    """Refuses to replace something of another kind than what is to be written.

    Raises:
        ValueError: DEST is there and not `what`, in words, as which `same` knows it.
    """
    if os.path.lexists(dest) and not same(dest):
        raise ValueError(
            f"{dest} is not {what} and nothing else, so it is not replaced by one; give another DEST, or remove it."
        )


def is_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a folder, or what a link leads to, is a checkpoint and nothing else."""
    try:
        return set(os.listdir(folder)) == CHECKPOINT and (folder / "arrays").is_dir()
    except OSError:
        return False


def is_npz(path: pathlib.Path) -> bool:
    """Whether a path is a file of its own with npz's name."""
    return path.suffix == ".npz" and path.is_file() and not path.is_symlink()
