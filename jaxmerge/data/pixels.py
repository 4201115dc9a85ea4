"""Image files to pixels and back, cutting and shrinking."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def png(image: UInt8[np.ndarray, "H W C"]) -> bytes:
    """An image [H, W, C] as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(buffer, "PNG")
    return buffer.getvalue()


def decode(data: bytes, what: str) -> UInt8[np.ndarray, "H W 3"]:
    """An image file's pixels as RGB [H, W, 3], uint8.

    Raises:
        ValueError: it is damaged; names it as `what`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow has no common base of what damaged files raise
        raise ValueError(
            f"{what} must be an image, but {error or type(error).__name__}; fetch the data set again."
        ) from error


def shrink(image: UInt8[np.ndarray, "H W C"], factor: int) -> UInt8[np.ndarray, "h w C"]:
    """Means of blocks of factor x factor pixels, rounded half up, in whole numbers: the same everywhere."""
    if factor == 1:
        return image
    height, width, channels = image.shape
    assert height % factor == width % factor == 0, image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    return ((blocks.sum((1, 3), dtype=np.int64) + factor**2 // 2) // factor**2).astype(np.uint8)


def square(image: UInt8[np.ndarray, "H W C"], size: int) -> UInt8[np.ndarray, "S S C"]:
    """The largest centred square, resized to size x size with Pillow's Lanczos filter where it has another size."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    image = image[top : top + side, left : left + side]
    if side == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))
