"""Many samples on disk: numbered shards that a stopped run continues, and exports for other people's tools.

    samples/
      manifest.json              what was asked: identity of the model, settings, count, shard size, shape
      shard-00003-of-00050.npy   uint8 grey levels [n, H, W, C] of samples 3 s to 3 s + n - 1
      shard-00003-of-00050.json  its SHA-256 and network calls per image

Sample i starts from noise that follows from (key, i) alone, and a shard's file appears whole or not at
all. So shards that were written before a kill are the ones that an undisturbed run writes, and the ones
after it continue the same sequence. The images of a shard are computed in batches of one shape; for the
same shard size, batch size and device count they are the same to the last bit.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxmerge.files import make_folder, plain, read_json, write_bytes

MANIFEST = "manifest.json"
NAME = re.compile(r"shard-(\d{5})-of-(\d{5})\.npy")


class Layout(NamedTuple):
    """How samples are cut into files.

    Attributes:
        count: images altogether.
        size: images per shard; the last one may hold fewer.
        shape: (H, W, C).
    """

    count: int
    size: int
    shape: tuple[int, int, int]

    @property
    def shards(self) -> int:
        """Number of files."""
        return -(-self.count // self.size)

    def rows(self, shard: int) -> tuple[int, int]:
        """(first, number) of the samples in a shard."""
        first = shard * self.size
        return first, min(self.size, self.count - first)

    def file(self, shard: int) -> str:
        """Name of a shard's file."""
        return f"shard-{shard:05d}-of-{self.shards:05d}.npy"


class Shards:
    """A folder of samples; a sequence of memory-mapped arrays, one per shard.

    Args:
        folder: where the shards are; created by `write`.
        layout: how the samples are cut.
    """

    def __init__(self, folder: str | Path, layout: Layout):
        self.folder, self.layout = Path(folder), layout

    def __len__(self) -> int:
        return self.layout.shards

    def __getitem__(self, shard: int) -> UInt8[np.ndarray, "n H W C"]:
        """The images of a shard, mapped and not read.

        Raises:
            IndexError: no such shard.
            ValueError: its file is missing, of another size or shape.
        """
        if not 0 <= shard < len(self):
            raise IndexError(shard)
        path = self.folder / self.layout.file(shard)
        try:
            images = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path} should hold samples but cannot be read ({error}); run the same command again to finish them."
            ) from error
        wanted = (self.layout.rows(shard)[1], *self.layout.shape)
        if images.shape != wanted or images.dtype != np.uint8:
            raise ValueError(
                f"{path} should hold uint8 images of shape {wanted}, it has {images.dtype} of shape {images.shape}; "
                "remove it and run the same command again."
            )
        return images

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "n H W C"]]:
        return (self[shard] for shard in range(len(self)))

    def finished(self) -> list[int]:
        """Shards whose images and record are there and agree in size."""
        done = []
        for shard in range(len(self)):
            try:
                self[shard], self.record(shard)
            except (ValueError, OSError):
                continue
            done.append(shard)
        return done

    def record(self, shard: int) -> dict[str, Any]:
        """A shard's SHA-256 ("sha256") and mean network calls per image ("nfe")."""
        return read_json((self.folder / self.layout.file(shard)).with_suffix(".json"))

    def verify(self) -> None:
        """Reads every shard and compares its hash with the one that was recorded when it was written.

        Raises:
            ValueError: names the first shard that is missing or differs.
        """
        for shard in range(len(self)):
            data, path = self[shard], self.folder / self.layout.file(shard)
            if (
                hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()
                != self.record(shard)["sha256"]
            ):
                raise ValueError(
                    f"the images of {path} are not those that were written; remove it and run the same command again."
                )


def write(
    folder: str | Path,
    layout: Layout,
    identity: dict[str, Any],
    generate: Callable[[int, int], tuple[UInt8[np.ndarray, "n H W C"], np.ndarray]],
    *,
    advance: Callable[[int], None] = lambda n: None,
) -> Shards:
    """Writes the shards that are not there yet.

    Args:
        folder: where they go.
        layout: how the samples are cut.
        identity: what makes the samples what they are (weights, threshold, settings, seed), as JSON.
        generate: ``generate(first, count)`` gives samples `first` to `first + count - 1` and their network calls.
        advance: called with the number of images done, those of earlier runs first.

    Raises:
        ValueError: the folder holds other samples.
        OSError: no permission or no space; finished shards stay.
    """
    folder = Path(folder)
    if layout.count < 1 or layout.size < 1:
        raise ValueError(
            f"count and shard size must be at least 1, got {layout.count} and {layout.size}; ask for some images."
        )
    make_folder(folder)
    asked = json.loads(json.dumps(plain({**layout._asdict(), "identity": identity})))
    manifest = folder / MANIFEST
    if manifest.exists():
        _refuse_others(manifest, asked)
    else:
        write_bytes(manifest, (json.dumps(asked, indent=1) + "\n").encode())
    shards = Shards(folder, layout)
    done = set(shards.finished())
    advance(sum(layout.rows(shard)[1] for shard in done))
    for shard in range(layout.shards):
        if shard in done:
            continue
        first, count = layout.rows(shard)
        images, nfe = generate(first, count)
        _write_shard(folder / layout.file(shard), np.ascontiguousarray(images), float(np.mean(nfe)))
        advance(count)
    return shards


def _write_shard(path: Path, images: UInt8[np.ndarray, "n H W C"], nfe: float) -> None:
    record = {"sha256": hashlib.sha256(images.tobytes()).hexdigest(), "nfe": nfe}
    buffer = io.BytesIO()
    np.save(buffer, images, allow_pickle=False)
    # The record first: a shard counts as finished where both are there.
    write_bytes(path.with_suffix(".json"), (json.dumps(record) + "\n").encode())
    write_bytes(path, buffer.getvalue())


def _refuse_others(manifest: Path, asked: dict[str, Any]) -> None:
    try:
        stored = read_json(manifest)
    except ValueError as error:
        raise ValueError(
            f"{manifest} is damaged, so it cannot be told whose samples these are; choose another folder."
        ) from error
    if stored != asked:
        differing = sorted(k for k in stored.keys() | asked.keys() if stored.get(k) != asked.get(k))
        raise ValueError(
            f"{manifest.parent} holds other samples than asked for (their {', '.join(differing)} differ); choose another "
            "folder or remove this one."
        )


def read(folder: str | Path) -> Shards:
    """The samples of a folder.

    Raises:
        ValueError: no manifest there, or shards are missing.
    """
    folder = Path(folder)
    try:
        stored = read_json(folder / MANIFEST)
        layout = Layout(int(stored["count"]), int(stored["size"]), tuple(stored["shape"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} should hold samples with a {MANIFEST}, which cannot be read ({type(error).__name__}); give the "
            "folder that a sampling run wrote."
        ) from error
    shards = Shards(folder, layout)
    missing = sorted(set(range(len(shards))) - set(shards.finished()))
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards; run the same command again to finish them."
        )
    return shards


def export_npz(shards: Shards, path: str | Path) -> None:
    """All images as ``arr_0`` [N, H, W, C] of one npz, which the usual FID tools read; whole in memory.

    Raises:
        OSError: no permission or no space; nothing half-written stays.
    """
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=np.concatenate(list(shards)))
    write_bytes(Path(path), buffer.getvalue())


def export_png(shards: Shards, folder: str | Path, levels: int) -> None:
    """One PNG per image, 1000 to a subfolder: ``00012/img00012345.png``. Grey levels are spread over 0 to 255.

    Args:
        shards: finished samples.
        folder: where they go; pictures that are there already stay as they are.
        levels: grey levels V of the images.

    Raises:
        OSError: no permission or no space.
    """
    from PIL import Image  # only where pictures are wanted

    for shard, images in enumerate(shards):
        first, _ = shards.layout.rows(shard)
        wide = np.rint(np.asarray(images, np.float64) * (255 / (levels - 1))).astype(np.uint8)
        for number, image in enumerate(wide, first):
            path = Path(folder) / f"{number // 1000:05d}" / f"img{number:08d}.png"
            if path.exists():
                continue
            buffer = io.BytesIO()
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "png")
            write_bytes(path, buffer.getvalue())
