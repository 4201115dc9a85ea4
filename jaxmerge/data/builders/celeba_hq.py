"""CelebA-HQ (Karras and others, 2018) at 1024x1024 and 256x256, with hair colour and lighting.

The images are those of the CelebAMask-HQ release, ``CelebA-HQ-img/0.jpg`` to ``29999.jpg``, aligned and
cropped to 1024x1024 by the set's authors; nothing more is cropped. At 256x256 every pixel is the mean of 4x4
pixels, rounded half up. The release's mapping leads from each image to its CelebA original, whose number
decides the split (CelebA's partition) and whose line in ``list_attr_celeba.txt`` says the hair colour.

No label for the light exists. It is read off the image: with the luma Y = (0.299 R + 0.587 G + 0.114 B) / 255,
`luminance` is its mean and `side_light` the mean of the left half minus that of the right half.
"""

import contextlib
import functools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from jaxmerge.data import pixels
from jaxmerge.data.builders import archives, base
from jaxmerge.data.published import File, Published

COUNT = 30_000
SOURCE_SIZE = 1024
HAIR = ("black", "blond", "brown", "gray", "bald", "unclear")
_COLUMNS = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Bald")
LIGHTING = ("dark", "even", "bright", "sided")
# Thresholds of `lighting`, chosen for plain words and fixed before any result: a third of the range below
# and above, and a difference of the halves that the eye sees at once.
DARK, BRIGHT, SIDED = 0.35, 0.55, 0.15
# Last CelebA image of the training and of the validation part (list_eval_partition.txt).
LAST_TRAIN, LAST_VALIDATION = 162_770, 182_637
MAPPING, ATTRIBUTES = "CelebA-HQ-to-CelebA-mapping.txt", "list_attr_celeba.txt"


def _published(size: int) -> Published:
    return Published(
        counts={"train": 24_183, "validation": 2_993, "test": 2_824},
        files={
            "images": (File("CelebA-HQ-img"), File("CelebAMask-HQ.zip"), File("CelebA-HQ-img.zip")),
            "mapping": (File(MAPPING),),
            "attributes": (
                File(ATTRIBUTES, "f0e5da289d5ccf75ffe8811132694922b60f2af59256ed362afa03fefba324d0"),
            ),
        },
        held_out=0,
        shape=(size, size, 3),
        how_to_get=(
            "its licence (research only, no redistribution) asks you to fetch it yourself: CelebAMask-HQ.zip, which "
            f"holds CelebA-HQ-img and {MAPPING}, from https://github.com/switchablenorms/CelebAMask-HQ, and "
            f"{ATTRIBUTES} from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html."
        ),
    )


PUBLISHED_256, PUBLISHED_1024 = _published(256), _published(1024)


class _CelebaHq(base.Images, skip_registration=True):
    """Both sizes; `published.shape` says which."""

    ATTRIBUTES = (*_COLUMNS, "luminance", "side_light", "lighting")

    def examples(self, split: str) -> Iterator[base.Example]:
        numbers, hair = read_mapping(self.files["mapping"]), read_hair(self.files["attributes"])
        if sum(self.published.counts.values()) != len(numbers):
            raise ValueError(
                f"{self.files['mapping']} must list {sum(self.published.counts.values())} images, got {len(numbers)}; "
                "take the one that comes with CelebAMask-HQ."
            )
        with _images(self.files["images"]) as read:
            for place, number in numbers.items():
                if split_of(number) == split:
                    yield self._example(read(place), place, number, hair)

    def _example(
        self, image: np.ndarray, place: int, number: int, hair: dict[int, dict[str, int]]
    ) -> base.Example:
        if image.shape != (SOURCE_SIZE, SOURCE_SIZE, 3):
            raise ValueError(
                f"image {place} of {self.files['images']} must be {SOURCE_SIZE}x{SOURCE_SIZE}, got "
                f"{image.shape[1]}x{image.shape[0]}; take the images of the CelebAMask-HQ release."
            )
        if number not in hair:
            raise ValueError(
                f"{self.files['attributes']} must have a line for {number:06d}.jpg, but has none; take CelebA's own."
            )
        image = pixels.shrink(image, SOURCE_SIZE // self.published.shape[0])
        luminance, side_light = light(image)
        attributes = {
            **hair[number],
            "luminance": luminance,
            "side_light": side_light,
            "lighting": lighting(luminance, side_light),
        }
        return base.Example(image, hair_of(hair[number]), attributes)


class JaxmergeCelebaHq256(_CelebaHq):
    """CelebA-HQ, 256x256."""

    name = "jaxmerge_celeba_hq_256"


class JaxmergeCelebaHq1024(_CelebaHq):
    """CelebA-HQ, 1024x1024."""

    name = "jaxmerge_celeba_hq_1024"


def split_of(number: int) -> str:
    """CelebA's part of its image `number`, counted from 1."""
    return "train" if number <= LAST_TRAIN else "validation" if number <= LAST_VALIDATION else "test"


def light(image: np.ndarray) -> tuple[float, float]:
    """Mean luma of an image [H, W, 3], 0 to 1, and that of its left half minus that of its right half."""
    luma = image @ np.array([0.299, 0.587, 0.114]) / 255
    half = luma.shape[1] // 2
    return float(luma.mean()), float(luma[:, :half].mean() - luma[:, half:].mean())


def lighting(luminance: float, side_light: float) -> int:
    """Position in `LIGHTING`: sided, where the halves differ by more than `SIDED`; else by the mean."""
    if abs(side_light) > SIDED:
        return LIGHTING.index("sided")
    return LIGHTING.index("dark" if luminance < DARK else "bright" if luminance > BRIGHT else "even")


def read_mapping(path: Path) -> dict[int, int]:
    """From the number of a CelebA-HQ image to that of its CelebA original, counted from 1.

    Raises:
        ValueError: a line is not "idx orig_idx orig_file".
    """
    numbers = {}
    for line in path.read_text().splitlines()[1:]:
        try:
            place, _, file = line.split()
            numbers[int(place)] = int(file.removesuffix(".jpg"))
        except ValueError as error:
            raise ValueError(
                f"{path} must have lines 'idx orig_idx orig_file', got {line!r}; take the one of CelebAMask-HQ."
            ) from error
    return numbers


def hair_of(marks: dict[str, int]) -> int:
    """Position in `HAIR`: the one of CelebA's five attributes that is set, "unclear" where none is or several."""
    marked = [i for i, column in enumerate(_COLUMNS) if marks[column]]
    return marked[0] if len(marked) == 1 else HAIR.index("unclear")


def read_hair(path: Path) -> dict[int, dict[str, int]]:
    """From the number of a CelebA image to its five attributes of hair, 1 where set and 0 where not.

    Raises:
        ValueError: the columns or a line are not those of list_attr_celeba.txt.
    """
    lines = path.read_text().splitlines()
    names = lines[1].split() if len(lines) > 1 else []
    if not set(_COLUMNS) <= set(names):
        raise ValueError(
            f"{path} must have the columns {', '.join(_COLUMNS)} in its second line; take CelebA's own."
        )
    columns = [names.index(name) for name in _COLUMNS]
    hair = {}
    for line in lines[2:]:
        file, *values = line.split()
        if len(values) != len(names):
            raise ValueError(
                f"{path} must have {len(names)} values in each line, got {line[:40]!r}; fetch it again."
            )
        marks = {name: int(values[column] == "1") for name, column in zip(_COLUMNS, columns, strict=True)}
        hair[int(file.removesuffix(".jpg"))] = marks
    return hair


@contextlib.contextmanager
def _images(path: Path) -> Iterator[Callable[[int], np.ndarray]]:
    """A function from an image's number to its pixels, for a folder or a zip archive, which stays open."""
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            files = {file.stem: file.read_bytes for file in archives.image_files(path)}
        else:
            with archives.telling_damage(path):
                archive = stack.enter_context(zipfile.ZipFile(path))
            inside = (name for name in archive.namelist() if "CelebA-HQ-img/" in name)
            files = {PurePosixPath(name).stem: functools.partial(archive.read, name) for name in inside}

        def image(place: int) -> np.ndarray:
            if str(place) not in files:
                raise ValueError(f"{path} must hold image {place}, but has none; fetch CelebAMask-HQ again.")
            with archives.telling_damage(path):
                data = files[str(place)]()
            return pixels.decode(data, f"image {place} of {path}")

        yield image
