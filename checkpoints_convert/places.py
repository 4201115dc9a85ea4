"""Files and folders: what may be written where, and what is left when something fails."""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterator


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
    """Refuses a DEST that must not be written, before anything is fetched.

    Raises:
        ValueError: something is there, and either it is not to be replaced or it is no checkpoint.
    """
    if not dest.exists() and not dest.is_symlink():
        return
    if not overwrite:
        raise ValueError(f"{dest} already exists; give another DEST, or --overwrite to replace it.")
    if not (dest / "metadata.json").is_file() and dest.suffix != ".npz":
        raise ValueError(f"{dest} is not a checkpoint, so it is not replaced; give another DEST.")
