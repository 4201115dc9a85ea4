"""LSUN churches (Yu and others, 2015) at 256x256.

LSUN's church_outdoor comes as LMDB databases of WebP files whose shorter side is 256, 126 227 for training
and 300 for validation; folders of the exported images are read as well. Each image is cut to its centred
square; where that is not 256x256, Pillow's Lanczos filter resizes it.

Among scraped photographs some come twice. An image whose 256x256 pixels have the same SHA-256 as an earlier
one of its split is left out, and so is a training image that is a test image; how many were is noted in the
prepared set's record. Near duplicates (another crop, another compression) stay.
"""

import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxmerge.data import pixels
from jaxmerge.data.builders import archives, base
from jaxmerge.data.published import File, Published

SIZE = 256
_PLACE = "http://dl.yf.io/lsun/scenes"
_HASHES = {
    "train": "91128ae026840ac0c5982b4445ab5fc4e092d6847cca76793b2b1a0815c2e74a",
    "val": "34635b7547a3e51a15f942a4a4082dd6bc9cca381a953515cb2275c0eed50584",
}


def _forms(part: str) -> tuple[File, ...]:
    name = f"church_outdoor_{part}_lmdb"
    return (
        File(f"{name}.zip", _HASHES[part], f"{_PLACE}/{name}.zip"),
        File(name),
        File(f"church_outdoor_{part}"),
    )


PUBLISHED = Published(
    counts={"train": 126_227, "test": 300},
    files={"train": _forms("train"), "test": _forms("val")},
    held_out=5_000,
    shape=(SIZE, SIZE, 3),
    how_to_get=f"fetch {_PLACE}/church_outdoor_train_lmdb.zip (2.4 GB) and church_outdoor_val_lmdb.zip and put them there.",
)


class JaxmergeLsunChurch256(base.Images):
    """LSUN churches, 256x256."""

    name = "jaxmerge_lsun_church_256"

    def examples(self, split: str) -> Iterator[base.Example]:
        seen = set() if split == "test" else {_digest(image) for image in self._images("test")}
        dropped = 0
        for image in self._images(split):
            digest = _digest(image)
            if digest in seen:
                dropped += 1
                continue
            seen.add(digest)
            yield base.Example(image)
        self.notes[f"duplicates left out of {split}"] = dropped

    def _images(self, split: str) -> Iterator[np.ndarray]:
        path = self.files[split]
        for name, data in _contents(path):
            yield pixels.square(pixels.decode(data, f"{name} of {path}"), SIZE)


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every image file, sorted by name."""
    if path.is_file():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # LMDB reads from files only
            with archives.telling_damage(path), zipfile.ZipFile(path) as archive:
                name = next((n for n in archive.namelist() if n.endswith("/data.mdb")), None)
                if name is None:
                    raise ValueError(f"{path} must hold a file data.mdb, but has none; fetch it again.")
                database = Path(archive.extract(name, folder)).parent
            yield from _database(database)
    elif (path / "data.mdb").exists():
        yield from _database(path)
    else:
        yield from ((file.name, file.read_bytes()) for file in archives.image_files(path))


def _database(folder: Path) -> Iterator[tuple[str, bytes]]:
    try:
        import lmdb  # an optional part, wanted for this set alone
    except ImportError as error:
        raise ValueError(
            "LSUN's databases are read with lmdb, which is not installed; run: pip install lmdb"
        ) from error
    try:
        with (
            lmdb.open(str(folder), readonly=True, lock=False, readahead=False, max_readers=1) as database,
            database.begin() as reading,
        ):
            for key, value in reading.cursor():
                yield key.decode("ascii", "replace"), value
    except lmdb.Error as error:
        raise ValueError(f"{folder} must hold an LMDB database, but {error}; fetch it again.") from error
