"""Sets on disk: prepared once as array_record, then read image by image. No TensorFlow.

Under the data folder (`data_dir`, else the environment's JAXMERGE_DATA, else ~/jaxmerge_data) lie the
archives that the user put there and, in ``prepared/``, what is made of them: TFDS's files, `record.json`
(counts, hashes of archives, identity of every split) and `tables.npz` (labels and further numbers). The
record is written last, so that a set without one is not finished and is prepared anew.
"""

import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int, UInt8

from jaxmerge.data import builders
from jaxmerge.data.builders import folder
from jaxmerge.data.dataset import Dataset, Fingerprint
from jaxmerge.data.published import Published, data_folder, locate, sha256

RECORD, TABLES = "record.json", "tables.npz"
LEVELS = 256
# Images that are read at once to take the fingerprint.
CHUNK = 512


def command(name: str, data_dir: Path) -> str:
    """The command line that prepares a set."""
    return f"python -m jaxmerge.data {name} --data-dir {data_dir}"


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A published split as TFDS stored it, a `Source`; opened when it is first read."""

    path: Path
    split: str
    count: int
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def rows(self):
        """TFDS's data source, a sequence of dictionaries."""
        return tfds.builder_from_directory(self.path).as_data_source(split=self.split)

    def read(self, positions: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n H W C"]:
        """The images at these positions.

        Raises:
            ValueError: the files are damaged or gone.
        """
        if not len(positions):
            return np.zeros((0, *self.shape), np.uint8)
        return np.stack([row["image"] for row in self.examples(positions)])

    def examples(self, positions: Int[np.ndarray, " n"]) -> list[dict[str, Any]]:
        """Everything that is stored of these images; raises as `read`."""
        try:
            return self.rows.__getitems__([int(i) for i in positions])
        except Exception as error:  # array_record, TFDS and Pillow have each their own
            raise ValueError(
                f"the prepared set in {self.path} must be readable, but {error or type(error).__name__}; delete that "
                "folder and prepare the set again."
            ) from error


def prepare(
    name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    published: Published | None = None,
    download: bool = True,
) -> dict[str, Any]:
    """Makes a set ready to be read, unless it is: checks its files, stores its images, takes its identity.

    Args:
        name: one of `builders.NAMES`, or a folder's.
        data_dir: the data folder.
        published: what the publisher says; for tests with miniature archives.
        download: fetch files that are missing and have a public address.

    Returns:
        The set's record.

    Raises:
        ValueError: a file is missing, damaged or another set's; or images are missing.
    """
    data_dir = data_folder(data_dir)
    record = _finished(name, data_dir, published)
    if record is not None:
        return record
    builder, archives = _builder(name, data_dir, published, download)
    path = Path(builder.data_path)
    shutil.rmtree(path, ignore_errors=True)  # what was interrupted before its record was written
    builder.download_and_prepare(download_dir=data_dir / "prepared" / "downloads")
    record, tables = _describe(builder, name)
    record["archives"] = archives
    np.savez_compressed(path / TABLES, **tables)
    beside = path / f".{RECORD}.{os.getpid()}"
    beside.write_text(json.dumps(record, indent=1), encoding="utf-8")
    beside.replace(path / RECORD)
    return record


def open_split(
    name: str, split: str, data_dir: str | os.PathLike | None = None, *, published: Published | None = None
) -> Dataset:
    """One split of a prepared set; its images stay on disk until they are asked for.

    Args:
        name, data_dir, published: as for `prepare`.
        split: "train", "validation", "test" or, where validation images are held out of the training images,
            "train_part", the others.

    Raises:
        ValueError: the set is not prepared, was prepared from other files, or has no such split.
    """
    data_dir = data_folder(data_dir)
    record = _prepared(name, data_dir, published)
    if split not in record["splits"]:
        raise ValueError(f"{name} has the splits {', '.join(record['splits'])}, got {split!r}.")
    path = _place(name, data_dir)
    stored, positions = roles(record["stored"], record["held_out"])[split]
    first = _firsts(record["stored"])[stored]
    with np.load(path / TABLES, allow_pickle=False) as tables:
        columns = {
            key.split("/")[1]: tables[key][positions] for key in tables.files if key.startswith(f"{stored}/")
        }
    labels = columns.pop("label")
    source = Records(path, stored, record["stored"][stored], tuple(record["shape"]))
    identity = record["splits"][split]["sha256"]
    return Dataset(name, split, source, positions, labels, LEVELS, positions + first, columns, identity)


def splits(name: str, data_dir: str | os.PathLike | None = None) -> tuple[str, ...]:
    """The splits of a prepared set; raises as `open_split`."""
    return tuple(_prepared(name, data_folder(data_dir), None)["splits"])


def roles(counts: dict[str, int], held_out: int) -> dict[str, tuple[str, np.ndarray]]:
    """What each split means: the published split and the positions in it, ascending.

    With n held out of N training images, validation are the images floor(i N / n), i = 0 ... n - 1, and
    train_part the others; train stays what was published.
    """
    splits = {split: (split, np.arange(count)) for split, count in counts.items()}
    if held_out:
        total = counts["train"]
        chosen = np.arange(held_out) * total // held_out
        splits["validation"] = ("train", chosen)
        splits["train_part"] = ("train", np.setdiff1d(np.arange(total), chosen))
    return splits


def _firsts(counts: dict[str, int]) -> dict[str, int]:
    """The number in the whole set of each published split's first image."""
    return dict(zip(counts, np.cumsum([0, *counts.values()])[:-1].tolist(), strict=True))


def _place(name: str, data_dir: Path) -> Path:
    prepared = data_dir / "prepared"
    if name.startswith(folder.PREFIX):
        return prepared / folder.parse(name).key / "jaxmerge_folder" / "1.0.0"
    return prepared / f"jaxmerge_{name}" / "1.0.0"


def _prepared(name: str, data_dir: Path, published: Published | None) -> dict[str, Any]:
    record = _finished(name, data_dir, published)
    if record is None:
        raise ValueError(f"{name} is not prepared in {data_dir}; prepare it with: {command(name, data_dir)}")
    return record


def _finished(name: str, data_dir: Path, published: Published | None) -> dict[str, Any] | None:
    """The record of a prepared set, None without one.

    Raises:
        ValueError: it was prepared from something else than is expected now.
    """
    path = _place(name, data_dir)
    if not (path / RECORD).exists():
        return None
    record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    if name.startswith(folder.PREFIX):
        images = folder.parse(name).path
        if images.is_dir() and folder.listing(images) != record["archives"]["listing"]:
            raise ValueError(
                f"the images in {images} are not those that {path} was made of; delete it and prepare anew."
            )
        return record
    expected = dict((published or builders.find(name).published).counts)
    if record["published"] != expected:
        raise ValueError(
            f"{path} was prepared from {record['published']} images, {name} has {expected}; delete it."
        )
    return record


def _builder(name: str, data_dir: Path, published: Published | None, download: bool):
    """A set's TFDS builder and what is known of its files."""
    if name.startswith(folder.PREFIX):
        parsed = folder.parse(name)
        found, members = folder.survey(parsed)
        builder = folder.JaxmergeFolder(parsed, found, members, data_dir=_place(name, data_dir).parents[1])
        return builder, {"listing": folder.listing(parsed.path)}
    entry = builders.find(name)
    published = published or entry.published
    files = locate(name, published, data_dir, download=download)
    builder = entry.builder(files, published, data_dir=data_dir / "prepared")
    return builder, {path.name: None if path.is_dir() else sha256(path) for path in files.values()}


def _describe(builder, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Record and tables of a stored set, from its files as they will be read."""
    counts = {split: builder.info.splits[split].num_examples for split in builder.published.counts}
    splits = roles(counts, builder.published.held_out)
    prints = {split: Fingerprint() for split in splits}
    tables: dict[str, np.ndarray] = {}
    for stored, count in counts.items():
        source = Records(Path(builder.data_path), stored, count, builder.published.shape)
        columns: dict[str, list] = {"label": [], **{key: [] for key in builder.ATTRIBUTES}}
        for start in range(0, count, CHUNK):
            places = np.arange(start, min(start + CHUNK, count))
            rows = source.examples(places)
            images = np.stack([row["image"] for row in rows])
            for split, (of, positions) in splits.items():
                if of == stored:
                    prints[split].add(images[np.isin(places, positions, assume_unique=True)])
            for key, values in columns.items():
                values += [row[key] for row in rows]
        tables |= {f"{stored}/{key}": np.asarray(values) for key, values in columns.items()}
    first = _firsts(counts)
    record = {
        "name": name,
        "published": dict(builder.published.counts),
        "stored": counts,
        "held_out": builder.published.held_out,
        "shape": list(builder.published.shape),
        "levels": LEVELS,
        "notes": builder.notes,
        "splits": {
            split: {"images": len(positions), "sha256": prints[split].value(positions + first[of])}
            for split, (of, positions) in splits.items()
        },
    }
    return record, tables
