"""Embedded colour profiles, applied as a viewer applies them."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's colour space, and Pillow's mode
_NOTHING = 2  # of 255: sRGB by another name, rounded; such images stay bit for bit what is stored


def in_srgb(image: Image.Image) -> Image.Image:
    """Converts the colours of an image to sRGB, from its embedded profile.

    An image without a profile is returned as it is, and so, as in viewers, is one whose profile is damaged, belongs to
    another kind of colours, or is sRGB.  Transparency is kept.

    Args:
      image: Decoded image in any mode but 16-bit ones.
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
    if colours is None:  # only where it was asked to work in place
        return image
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


@functools.lru_cache(maxsize=32)
def _mode(profile: bytes) -> str | None:
    """The mode of Pillow that a profile describes, or None."""
    try:
        described: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
        return _SPACES.get(described.xcolor_space.strip())
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """To sRGB, or None where that changes nothing or cannot be done."""
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
