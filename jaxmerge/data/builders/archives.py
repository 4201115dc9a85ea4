"""Members of archives and folders, with damage told in one sentence."""

import contextlib
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@contextlib.contextmanager
def telling_damage(path: Path) -> Iterator[None]:
    """Turns a damaged archive's many errors into one.

    Raises:
        ValueError: with the archive's name.
    """
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, KeyError) as error:
        raise ValueError(
            f"{path} must be a whole archive, but {error or type(error).__name__}; fetch it again."
        ) from error


def tar_members(path: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Name and content of an archive's files that end so, in their order, read once from front to back."""
    with telling_damage(path), tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isfile() and member.name.lower().endswith(suffixes):
                yield member.name, archive.extractfile(member).read()


def zip_members(path: Path) -> dict[str, str]:
    """An archive's files: from the last part of the name to the whole name."""
    with telling_damage(path), zipfile.ZipFile(path) as archive:
        return {name.rsplit("/", 1)[-1]: name for name in archive.namelist() if not name.endswith("/")}


def zip_member(path: Path, name: str) -> bytes:
    """One file of an archive."""
    with telling_damage(path), zipfile.ZipFile(path) as archive:
        return archive.read(name)


def image_files(folder: Path) -> list[Path]:
    """All images in a folder and the folders in it, sorted by name."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_FILES and path.is_file())
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())
