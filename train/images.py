"""Opening one image file, with every way in which it can mislead either handled or refused."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from train.errors import DataError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_SIXTEEN_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_REFUSED_MODES = {"I": "32-bit integers", "F": "floating-point numbers"}


def list_images(folder: Path) -> list[str]:
    """Paths, relative to the folder, of all image files below it, sorted by name; hidden files are passed over."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(
        path.as_posix()
        for path in found
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.parts)
        and (folder / path).is_file()
    )


def image_size(path: Path) -> tuple[int, int]:
    """Height and width as stored, from the header alone.

    Raises:
      DataError: if the file is no image, has several frames, or is too large to be decoded safely.
    """
    with _open(path) as image:
        return image.height, image.width


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The picture a viewer would show, as 8-bit RGB.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled (Pillow's own conversion
    would clip it), palettes, grey and CMYK are converted.

    Raises:
      DataError: as `image_size`, and if the pixels are truncated or of a kind that has no agreed range.
    """
    with _open(path) as image:
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} cannot be decoded ({error}); replace or remove it") from error
        return np.asarray(_to_rgb(upright, path))


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode in _REFUSED_MODES:
        raise DataError(f"{path} holds {_REFUSED_MODES[image.mode]}, which have no agreed white; convert it to 8 bits")
    if image.mode in _SIXTEEN_BITS:
        grey = np.asarray(image).astype(np.float32) / 257.0  # 65535 / 257 = 255
        return Image.fromarray(np.round(grey).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _open(path: Path) -> Image.Image:
    """The image with only its header read, checked for what would go wrong later."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice its limit, and by then a small file may ask for gigabytes.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller or cut it up first"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is no image that Pillow can read ({error}); replace or remove it") from error
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        image.close()
        raise DataError(f"{path} has {frames} frames; save the one that is meant as an image of its own")
    return image
