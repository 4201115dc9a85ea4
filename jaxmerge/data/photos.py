"""32x32 colour crops, 256 levels, of ten photographs that come with scikit-learn and scikit-image.

Each photo is divided into cells of 96x96 pixels; the legacy ``numpy.random.RandomState``, whose stream numpy
guarantees never to change, deals out the cells: 20 % test, 15 % validation, the rest training. A crop belongs
to a split when all its pixels lie in that split's cells, and when no pixel within `MARGIN` of it lies in a
cell of a split that goes before (test before validation before training). So no pixel is in two splits, and
crops of two splits are at least `MARGIN` pixels apart.

Test and validation crops of a photo stand side by side on a grid of 32 pixels and never overlap; training
crops do, every 8 pixels, as random crops would. The two largest photos (hubble, retina), which are smooth at
the scale of 32 pixels, are first halved by means of 2x2 pixels. Crops without texture (sky, black borders:
standard deviation below `MIN_STD` in every channel) are left out of every split. The label is the photo.
"""

import functools
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8

from jaxmerge.data import pixels
from jaxmerge.data.dataset import Dataset, in_memory

NAME = "photos"
LEVELS = 256
SPLITS = ("train", "validation", "test")
# Name, package, file in it, and the factor by which the photo is shrunk.
PHOTOS = (
    ("china", "sklearn", "datasets/images/china.jpg", 1),
    ("flower", "sklearn", "datasets/images/flower.jpg", 1),
    ("astronaut", "skimage", "data/astronaut.png", 1),
    ("chelsea", "skimage", "data/chelsea.png", 1),
    ("coffee", "skimage", "data/coffee.png", 1),
    ("rocket", "skimage", "data/rocket.jpg", 1),
    ("motorcycle", "skimage", "data/motorcycle_left.png", 1),
    ("hubble", "skimage", "data/hubble_deep_field.jpg", 2),
    ("retina", "skimage", "data/retina.jpg", 2),
    ("ihc", "skimage", "data/ihc.png", 1),
)
SIZE, CELL, MARGIN = 32, 96, 16
STRIDES = {"train": 8, "validation": 32, "test": 32}
SHARES = {"test": 0.20, "validation": 0.15}
MIN_STD = 3.0
SPLIT_SEED = 2511
PIXELS_SHA256 = "f74948c41eb2ab543b5cd5b97157ac8ab0f90448481830868c2d1a7ad361ee3b"


def load(split: str) -> Dataset:
    """One split of the photos' crops.

    Args:
        split: "train", "validation" or "test".

    Returns:
        The split. Its attributes hold, for every crop, `photo` (its label too), `top` and `left` (its first
        pixel in the photo's own pixels) and `side` (the photo's pixels that it covers in each direction).

    Raises:
        ValueError: another split name, a package without its photos, or other pixels than the known ones.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    crops, where, splits = _all_crops()
    positions = splits[split]
    attributes = {key: values[positions] for key, values in where.items()}
    return in_memory(NAME, split, crops, positions, attributes["photo"].copy(), LEVELS, attributes)


@functools.cache
def _all_crops() -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    photos = [read(package, file, factor) for _, package, file, factor in PHOTOS]
    verify(photos)
    crops, rows, splits, count = [], [], {}, 0
    for split in SPLITS:
        parts = [places(photo, number, split) for number, photo in enumerate(photos)]
        turn = np.concatenate([np.arange(len(part)) for part in parts])
        number = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        order = np.argsort(turn, kind="stable")  # the photos take turns
        row = np.column_stack([number, np.concatenate(parts)])[order]
        crops += [photos[n][top : top + SIZE, left : left + SIZE] for n, top, left in row]
        rows.append(row)
        splits[split] = np.arange(count, count + len(row))
        count += len(row)
    number, top, left = np.concatenate(rows).T
    factor = np.array([photo[3] for photo in PHOTOS])[number]
    where = {"photo": number, "top": top * factor, "left": left * factor, "side": SIZE * factor}
    return np.stack(crops), where, splits


def places(photo: UInt8[np.ndarray, "H W 3"], number: int, split: str) -> Int[np.ndarray, "n 2"]:
    """Top and left of a photo's crops in a split, in an order that is random but fixed."""
    roles = _roles(photo.shape[:2], number)
    rank = SPLITS.index(split)
    inside = _window_sums(roles != rank, SIZE) == 0
    around = _window_sums(np.pad(roles > rank, MARGIN), SIZE + 2 * MARGIN) == 0
    good = inside & around & _textured(photo)
    stride = STRIDES[split]
    grid = np.zeros_like(good)
    grid[::stride, ::stride] = True
    found = np.argwhere(good & grid)
    return np.random.RandomState([SPLIT_SEED, number, rank]).permutation(found)


def _roles(shape: tuple[int, int], number: int) -> Int[np.ndarray, "H W"]:
    """Each pixel's split as its position in `SPLITS`; the last row and column of cells take what is left over."""
    rows, columns = shape[0] // CELL, shape[1] // CELL
    cells = np.random.RandomState([SPLIT_SEED, number]).permutation(rows * columns)
    tests = round(SHARES["test"] * len(cells))
    held = tests + round(SHARES["validation"] * len(cells))
    roles = np.zeros(len(cells), np.int64)
    roles[cells[:tests]] = SPLITS.index("test")
    roles[cells[tests:held]] = SPLITS.index("validation")
    row = np.minimum(np.arange(shape[0]) // CELL, rows - 1)
    column = np.minimum(np.arange(shape[1]) // CELL, columns - 1)
    return roles.reshape(rows, columns)[np.ix_(row, column)]


def _textured(photo: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "h w"]:
    """Whether the crop at each place has a channel whose standard deviation is at least `MIN_STD`."""
    values = photo.astype(np.int64)
    count = SIZE * SIZE
    deviations = [
        count * _window_sums(values[..., c] ** 2, SIZE) - _window_sums(values[..., c], SIZE) ** 2
        for c in range(3)
    ]  # count^2 times the variance, in whole numbers
    return np.max(deviations, axis=0) >= MIN_STD**2 * count**2


def _window_sums(values: np.ndarray, size: int) -> Int[np.ndarray, "h w"]:
    """Sums over the size x size windows at every place where one fits."""
    total = np.pad(values.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]


def read(package: str, file: str, factor: int) -> UInt8[np.ndarray, "H W 3"]:
    """A photo out of an installed package, which is not imported, shrunk by `factor`.

    Raises:
        ValueError: the package or its file is not there.
    """
    spec = importlib.util.find_spec(package)
    path = Path(spec.submodule_search_locations[0]) / file if spec else None
    if path is None or not path.exists():
        wheel = {"sklearn": "scikit-learn", "skimage": "scikit-image"}[package]
        raise ValueError(
            f"the photos need {file} of {wheel}, which is not installed; run: pip install {wheel}"
        )
    photo = pixels.decode(path.read_bytes(), str(path))
    height, width = (n - n % factor for n in photo.shape[:2])
    return pixels.shrink(photo[:height, :width], factor)


def verify(photos: list[UInt8[np.ndarray, "H W 3"]]) -> None:
    """Checks that the photos' pixels are the ones that experts and figures were made from.

    Raises:
        ValueError: another SHA-256.
    """
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(photo.tobytes())
    if digest.hexdigest() != PIXELS_SHA256:
        raise ValueError(
            f"the ten photos must have the SHA-256 {PIXELS_SHA256[:16]}..., got {digest.hexdigest()[:16]}...; install "
            "scikit-learn, scikit-image and Pillow as published (seen with 1.9, 0.25 and 0.26, 11.3 and 13.0)."
        )
