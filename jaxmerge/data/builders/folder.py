"""Any folder of images.

`folder:/path` takes images that all have one size, `folder:/path@64` cuts each to its centred square and
resizes it to 64x64 (Lanczos). Files with equal content count once. Where the folder has the folders train,
validation and test, those are the splits. Otherwise the SHA-256 of a file's content decides: 80 % training,
10 % validation, 10 % test, so that the split depends neither on names nor on what else is there.
Images are ordered by that number, so that every prefix is a random sample. The label is the number of the
folder that holds the file, in alphabetical order.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from jaxmerge.data import pixels
from jaxmerge.data.builders import archives, base
from jaxmerge.data.published import Published

PREFIX = "folder:"
SPLITS = ("train", "validation", "test")
# Shares of training and of training plus validation images, where content decides.
TRAIN, TRAIN_AND_VALIDATION = 0.8, 0.9


@dataclasses.dataclass(frozen=True)
class Name:
    """``folder:/path`` or ``folder:/path@64``, taken apart; `size` is 0 where it is left away."""

    path: Path
    size: int

    @property
    def key(self) -> str:
        """A short name for the prepared set."""
        return f"{self.path.name}_{hashlib.sha256(f'{self.path}@{self.size}'.encode()).hexdigest()[:12]}"


def parse(name: str) -> Name:
    """A folder's data set name, taken apart.

    Raises:
        ValueError: the size is no number, or there is no path.
    """
    path, at, size = name.removeprefix(PREFIX).partition("@")
    if not path or (at and not (size.isdecimal() and int(size) > 0)):
        raise ValueError(f"a folder's data set is called folder:/path or folder:/path@64, got {name!r}.")
    return Name(Path(path).expanduser().resolve(), int(size) if at else 0)


def listing(folder: Path) -> str:
    """SHA-256 over names and sizes of a folder's images: changes when images come or go."""
    lines = (
        f"{file.relative_to(folder).as_posix()} {file.stat().st_size}"
        for file in archives.image_files(folder)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def survey(name: Name) -> tuple[Published, dict[str, list[tuple[Path, int]]]]:
    """The splits of a folder: what a publisher would say of them, and the files with their labels.

    Raises:
        ValueError: no such folder, or too few images for three splits, or a first image that is damaged.
    """
    files = archives.image_files(name.path) if name.path.is_dir() else []
    if not files:
        raise ValueError(
            f"{name.path} must be a folder with images ({', '.join(archives.IMAGE_FILES)}), but has none."
        )
    own = any((name.path / split).is_dir() for split in SPLITS)
    splits: dict[str, dict[str, Path]] = {split: {} for split in SPLITS}
    classes = sorted({file.parent.name for file in files})
    seen: set[str] = set()
    for file in files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        split = file.relative_to(name.path).parts[0] if own else _by_content(digest)
        if split in splits and digest not in seen:
            seen.add(digest)
            splits[split][digest] = file
    chosen = {
        split: [(members[digest], classes.index(members[digest].parent.name)) for digest in sorted(members)]
        for split, members in splits.items()
    }
    if not all(chosen.values()):
        sizes = ", ".join(f"{len(members)} {split}" for split, members in chosen.items())
        raise ValueError(
            f"{name.path} must have images for training, validation and test, got {sizes}; add some."
        )
    shape = pixels.decode(files[0].read_bytes(), str(files[0])).shape
    published = Published(
        counts={split: len(members) for split, members in chosen.items()},
        files={},
        held_out=0,
        shape=(name.size, name.size, 3) if name.size else shape,
        how_to_get="",
    )
    return published, chosen


def _by_content(digest: str) -> str:
    place = int(digest[:16], 16) / 2**64
    return "train" if place < TRAIN else "validation" if place < TRAIN_AND_VALIDATION else "test"


class JaxmergeFolder(base.Images):
    """A folder of images; `members` are each split's files with their labels."""

    def __init__(
        self, name: Name, published: Published, members: dict[str, list[tuple[Path, int]]], *, data_dir: Path
    ):
        self.size, self.members = name.size, members
        super().__init__({"folder": name.path}, published, data_dir=data_dir)

    def examples(self, split: str) -> Iterator[base.Example]:
        for file, label in self.members[split]:
            image = pixels.decode(file.read_bytes(), str(file))
            if self.size:
                image = pixels.square(image, self.size)
            elif image.shape != self.published.shape:
                raise ValueError(
                    f"{file} must have the size of the folder's first image, {self.published.shape[1]}x"
                    f"{self.published.shape[0]}, got {image.shape[1]}x{image.shape[0]}; ask for "
                    f"folder:{self.files['folder']}@SIZE."
                )
            yield base.Example(image, label)
