"""Applies embedded colour profiles, as viewers do."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's colour space, and Pillow's mode
_NOTHING = 2  # of 255; a profile that changes less is sRGB up to rounding, and the pixels are returned as stored


def in_srgb(image: Image.Image) -> Image.Image:
    """Converts the colours of an image to sRGB, from its embedded profile.

    Returns the image unchanged if it has no profile or, as in viewers, if the profile is damaged, is for another colour
    space, or is sRGB.  Keeps transparency.

    Args:
      image: Decoded image in any mode except 16-bit ones.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return image
    mode = _mode(profile)
    if (
        mode is None
        or (mode == "CMYK") != (image.mode == "CMYK")
        or (mode == "L" and image.mode not in ("L", "LA", "1"))
    ):
        return image
    transform = _transform(profile, mode)
    if transform is None:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = ImageCms.applyTransform(image if image.mode == mode else image.convert(mode), transform)
    if colours is None:  # only for in-place conversion
        return image
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


@functools.lru_cache(maxsize=32)
def _mode(profile: bytes) -> str | None:
    """Returns Pillow's mode for a profile, or None."""
    try:
        described: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
        return _SPACES.get(described.xcolor_space.strip())
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns the transform to sRGB; None if it changes nothing or is not possible."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return transform if mode == "CMYK" or _changes(transform, mode) else None


def _changes(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    steps = np.arange(256, dtype=np.uint8)[:: 15 if mode == "RGB" else 1]
    probe = np.stack(np.meshgrid(*[steps] * (3 if mode == "RGB" else 1), indexing="ij"), axis=-1)
    probe = probe.reshape(len(steps), -1, probe.shape[-1])
    shown = ImageCms.applyTransform(Image.fromarray(probe.squeeze(-1) if mode == "L" else probe), transform)
    return bool(np.abs(np.asarray(shown).astype(np.int16) - probe).max() > _NOTHING)
