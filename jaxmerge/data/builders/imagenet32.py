"""The two data sets called ImageNet 32x32, which differ in every pixel.

`imagenet32_old` (van den Oord, Kalchbrenner and Kavukcuoglu, 2016, PixelRNN): tar archives of PNG files,
1 281 149 and 49 999 images, no labels. `imagenet32_new` (Chrabaszcz, Loshchilov and Hutter, 2017): zip
archives of ten batches and one, as npz files or as pickles, 1 281 167 and 50 000 images with labels 1 to
1 000. They were shrunk in different ways, and the old set is harder to compress: one method, i-DODE, is
published with 3.69 bits per dimension on the old and 3.43 on the new one. Figures on one say nothing about
the other.
"""

import io
from collections.abc import Iterator

import numpy as np

from jaxmerge.data import pickled, pixels
from jaxmerge.data.builders import archives, base
from jaxmerge.data.published import File, Published

SHAPE = (32, 32, 3)
PIXELS = 3 * 32 * 32
_NEW = "https://image-net.org/data/downsample"
OLD = Published(
    counts={"train": 1_281_149, "test": 49_999},
    files={
        "train": (
            File("train_32x32.tar", "244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5"),
        ),
        "test": (
            File("valid_32x32.tar", "862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7"),
        ),
    },
    held_out=10_000,
    shape=SHAPE,
    how_to_get=(
        "image-net.org has withdrawn the old ImageNet32 (train_32x32.tar, valid_32x32.tar), so ask a colleague or "
        "use the copy at https://academictorrents.com/details/bf62f5051ef878b9c357e6221e879629a9b4b172."
    ),
)
NEW = Published(
    counts={"train": 1_281_167, "test": 50_000},
    files={
        "train": (
            File(
                "Imagenet32_train_npz.zip", "94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc"
            ),
            File("Imagenet32_train.zip"),
        ),
        "test": (
            File(
                "Imagenet32_val_npz.zip", "013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a"
            ),
            File("Imagenet32_val.zip"),
        ),
    },
    held_out=10_000,
    shape=SHAPE,
    how_to_get=(
        f"ImageNet's terms must be accepted first: log in at https://image-net.org/download-images and fetch the "
        f"32x32 archives ({_NEW}/Imagenet32_train_npz.zip and Imagenet32_val_npz.zip, or the ones without _npz)."
    ),
)


class JaxmergeImagenet32Old(base.Images):
    """ImageNet 32x32 as van den Oord and others made it."""

    name = "jaxmerge_imagenet32_old"

    def examples(self, split: str) -> Iterator[base.Example]:
        path = self.files[split]
        for name, data in archives.tar_members(path, (".png",)):
            yield base.Example(pixels.decode(data, f"{name} of {path}"))


class JaxmergeImagenet32New(base.Images):
    """ImageNet 32x32 as Chrabaszcz and others made it."""

    name = "jaxmerge_imagenet32_new"

    def examples(self, split: str) -> Iterator[base.Example]:
        path = self.files[split]
        members = archives.zip_members(path)
        batches = [f"train_data_batch_{i}" for i in range(1, 11)] if split == "train" else ["val_data"]
        for batch in batches:
            form = next((batch + end for end in (".npz", "") if batch + end in members), None)
            if form is None:
                raise ValueError(
                    f"{path} must hold {batch} or {batch}.npz, got {', '.join(sorted(members))}; fetch it again."
                )
            labels, rows = _batch(archives.zip_member(path, members[form]), f"{form} of {path}")
            images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            yield from (base.Example(image, int(label)) for image, label in zip(images, labels, strict=True))


def _batch(data: bytes, what: str) -> tuple[np.ndarray, np.ndarray]:
    if what.split(" ")[0].endswith(".npz"):
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                content = {name: stored[name] for name in ("data", "labels")}
        except Exception as error:  # zipfile, zlib and numpy have each their own
            raise ValueError(
                f"{what} must hold data and labels, but {error}; fetch the archive again."
            ) from error
    else:
        content = pickled.read(data, what)
    labels, rows = np.asarray(content.get("labels", ())), np.asarray(content.get("data", ()))
    good = rows.dtype == np.uint8 and rows.shape == (len(labels), PIXELS) and labels.size
    if not good or labels.min() < 1 or labels.max() > 1000:
        raise ValueError(
            f"{what} must hold rows of {PIXELS} bytes with labels 1 to 1000, got {len(labels)} labels and {rows.shape} "
            f"{rows.dtype}; fetch the archive again."
        )
    return labels - 1, rows
