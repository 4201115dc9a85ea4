"""What publishers say of a data set, and finding their files."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class File:
    """A file or folder as its publisher names it.

    Attributes:
        name: its name.
        sha256: of a file, where it is publicly known.
        url: where a program may fetch it; empty where there is no such place.
    """

    name: str
    sha256: str | None = None
    url: str = ""


@dataclasses.dataclass(frozen=True)
class Published:
    """A data set as published.

    Attributes:
        counts: images of every published split, in the order in which they are numbered.
        files: for every part that is needed, the forms in which it may be given, the preferred one first.
        held_out: how many training images also make up the validation split; 0 where one is published.
        shape: of every image.
        how_to_get: one sentence for who has no file.
    """

    counts: Mapping[str, int]
    files: Mapping[str, tuple[File, ...]]
    held_out: int
    shape: tuple[int, int, int]
    how_to_get: str


def data_folder(data_dir: str | os.PathLike | None) -> Path:
    """Where archives and prepared sets are."""
    return Path(data_dir or os.environ.get("JAXMERGE_DATA") or "~/jaxmerge_data").expanduser().resolve()


def locate(name: str, published: Published, data_dir: Path, *, download: bool = True) -> dict[str, Path]:
    """The files of a data set, checked.

    Args:
        name: the data set, for the errors.
        published: its files.
        data_dir: searched itself and in its folder `name`; what is downloaded goes to that folder.
        download: fetch what is missing and has a public address.

    Returns:
        A path for every part.

    Raises:
        ValueError: a part is missing and cannot be fetched, or a file has another SHA-256.
    """
    found = {}
    for part, forms in published.files.items():
        given = [(form, path) for form in forms for path in _places(name, form, data_dir) if path.exists()]
        fetchable = [form for form in forms if form.url]
        if given:
            form, found[part] = given[0]
            verify(form, found[part])
        elif fetchable and download:
            found[part] = _fetch(fetchable[0], data_dir / name, published)
        else:
            names = " or ".join(form.name for form in forms)
            raise ValueError(
                f"{name} needs {names} in {data_dir} or {data_dir / name}, but none is there; {published.how_to_get}"
            )
    return found


def _places(name: str, form: File, data_dir: Path) -> tuple[Path, Path]:
    return data_dir / form.name, data_dir / name / form.name


def verify(form: File, path: Path) -> None:
    """Compares a file with its published SHA-256.

    Raises:
        ValueError: it has another one.
    """
    if form.sha256 is None or path.is_dir():
        return
    found = sha256(path)
    if found != form.sha256:
        raise ValueError(
            f"{path} must have the SHA-256 {form.sha256[:16]}..., got {found[:16]}... ({path.stat().st_size} bytes); "
            "it is damaged, incomplete or another file: fetch it again."
        )


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(form: File, folder: Path, published: Published) -> Path:
    import pooch  # only where something is fetched

    folder.mkdir(parents=True, exist_ok=True)
    try:
        return Path(pooch.retrieve(form.url, form.sha256 and f"sha256:{form.sha256}", form.name, folder))
    except Exception as error:
        raise ValueError(
            f"{form.name} must come from {form.url}, but {error or type(error).__name__}; {published.how_to_get}"
        ) from error
