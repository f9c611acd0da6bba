"""8-bit images in NumPy and Pillow: read, listed, padded, compared, drawn.

Loads no JAX; imports `flax_vae.convert.files`.  Used by everything that reads image files.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.images.comparison import (
        PANELS,
        WIDE,
        PanelLayout,
        draw_comparison,
        draw_pair,
        save_png,
        stack,
        visible_factor,
    )
    from flax_vae.images.formats import ADDRESSES, FORMATS
    from flax_vae.images.read import StorageError, image_size, read_image, read_model_input
    from flax_vae.images.scan import ImageScan, in_threads, require_storage, scan_images
    from flax_vae.images.scores import Comparison, ImageScores, compare_images, psnr, ssim
    from flax_vae.images.sizes import Crop, pad_to_factor, padded_size, resize_image, to_float, to_uint8
    from flax_vae.images.sources.folder import FolderSource
    from flax_vae.images.sources.open import open_images
    from flax_vae.images.sources.protocol import ImageSource, ImageSubset, ResizedSource
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ADDRESSES",
    "Comparison",
    "Crop",
    "FORMATS",
    "FolderSource",
    "ImageScan",
    "ImageScores",
    "ImageSource",
    "ImageSubset",
    "PANELS",
    "PanelLayout",
    "ResizedSource",
    "StorageError",
    "WIDE",
    "compare_images",
    "draw_comparison",
    "draw_pair",
    "image_size",
    "in_threads",
    "open_images",
    "pad_to_factor",
    "padded_size",
    "psnr",
    "read_image",
    "read_model_input",
    "require_storage",
    "resize_image",
    "save_png",
    "scan_images",
    "ssim",
    "stack",
    "to_float",
    "to_uint8",
    "visible_factor",
]
