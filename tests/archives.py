"""Miniature archives in the formats of the publishers, for the tests of `jaxmerge.data`."""

import dataclasses
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from jaxmerge.data.published import File, Published


def miniature(published: Published, counts: dict[str, int], held_out: int = 0) -> Published:
    """The same set with fewer images, whose files have no known SHA-256 and no address."""
    files = {part: tuple(File(form.name) for form in forms) for part, forms in published.files.items()}
    return dataclasses.replace(published, counts=counts, files=files, held_out=held_out)


def noise(count: int, seed: int, shape: tuple[int, ...] = (32, 32, 3)) -> np.ndarray:
    """Images [count, *shape], all different."""
    return np.random.RandomState(seed).randint(0, 256, (count, *shape), dtype=np.uint8)


def planes(images: np.ndarray) -> np.ndarray:
    """Rows of CIFAR-10 and of the new ImageNet32: all red, then all green, then all blue."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def encoded(image: np.ndarray, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def cifar10_batches(per_batch: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of the five training batches and the test batch, by name."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {name: (noise(per_batch, i), np.arange(i, i + per_batch) % 10) for i, name in enumerate(names)}


def cifar10_binary(path: Path, batches: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    members = {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n"}
    for name, (images, labels) in batches.items():
        rows = np.column_stack([labels.astype(np.uint8), planes(images)])
        members[f"cifar-10-batches-bin/{name}.bin"] = rows.tobytes()
    return write_tar(path, members, "w:gz")


def cifar10_python(path: Path, batches: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    members = {
        f"cifar-10-batches-py/{name}": python2_pickle(planes(images), labels)
        for name, (images, labels) in batches.items()
    }
    return write_tar(path, members, "w:gz")


def python2_pickle(rows: np.ndarray, labels: np.ndarray) -> bytes:
    """``cPickle.dumps({"labels": [...], "data": rows}, 2)`` as Python 2 and its numpy wrote it."""
    text = lambda value: b"U" + bytes([len(value)]) + value  # noqa: E731
    number = lambda value: b"J" + struct.pack("<i", value)  # noqa: E731
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n"
        + b"cnumpy\nndarray\n"
        + b"K\x00\x85"
        + text(b"b")
        + b"\x87R"
    )
    kind = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + text(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    data = b"T" + struct.pack("<i", rows.size) + rows.tobytes()
    state = (
        b"(K\x01" + number(rows.shape[0]) + number(rows.shape[1]) + b"\x86" + kind + b"\x89" + data + b"tb"
    )
    items = text(b"labels") + b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    return b"\x80\x02}(" + items + text(b"data") + array + state + b"u."


def imagenet32_old(path: Path, images: np.ndarray) -> Path:
    folder = path.stem
    return write_tar(path, {f"{folder}/{i + 1:07d}.png": encoded(image) for i, image in enumerate(images)})


def imagenet32_new(
    path: Path, images: np.ndarray, labels: np.ndarray, *, names: list[str], npz: bool
) -> Path:
    """Batches `names` with equal shares of the images; labels 1 to 1 000."""
    members = {}
    for name, part, own in zip(
        names, np.split(images, len(names)), np.split(labels, len(names)), strict=True
    ):
        content = {"data": planes(part), "labels": own.tolist(), "mean": planes(part).mean(0)}
        if npz:
            buffer = io.BytesIO()
            np.savez(buffer, **content)
            members[f"{name}.npz"] = buffer.getvalue()
        else:
            members[name] = pickle.dumps(content, protocol=4)
    return write_zip(path, members)


CELEBA_COLUMNS = ["5_o_Clock_Shadow", "Bald", "Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair", "Young"]


def celeba_hq(folder: Path, originals: list[int], hair: list[list[str]], images: list[np.ndarray]) -> None:
    """Images, mapping and attributes as in CelebAMask-HQ and CelebA; `originals` count from 1."""
    (folder / "CelebA-HQ-img").mkdir(parents=True)
    mapping, lines = ["idx     orig_idx    orig_file"], []
    for place, (number, marked, image) in enumerate(zip(originals, hair, images, strict=True)):
        (folder / "CelebA-HQ-img" / f"{place}.jpg").write_bytes(encoded(image, "JPEG", quality=95))
        mapping.append(f"{place:<8d}{number - 1:<12d}{number:06d}.jpg")
        lines.append(f"{number:06d}.jpg " + " ".join(" 1" if c in marked else "-1" for c in CELEBA_COLUMNS))
    (folder / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(mapping) + "\n")
    text = "\n".join([str(len(lines)), " ".join(CELEBA_COLUMNS), *lines]) + "\n"
    (folder / "list_attr_celeba.txt").write_text(text)


def lsun(folder: Path, images: dict[bytes, bytes]) -> Path:
    """An LMDB database of encoded images, by key."""
    import lmdb

    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=64 * 2**20) as database, database.begin(write=True) as writing:
        for key, data in images.items():
            writing.put(key, data)
    return folder
