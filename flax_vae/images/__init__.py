"""8-bit images in NumPy and Pillow: read, listed, padded, compared, drawn.

Loads no JAX; imports `flax_vae.convert.files`.  Used by everything that reads image files.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.images.comparison import WIDE, PanelLayout, draw_comparison, save_png, stack, visible_factor
    from flax_vae.images.folder import list_folder
    from flax_vae.images.read import StorageError, file_content, file_digest, image_size, read_image, upright_size
    from flax_vae.images.scores import Comparison, ImageScores, compare_images, psnr, ssim
    from flax_vae.images.sizes import pad_to_factor, padded_size, to_float, to_uint8
    from flax_vae.images.sources import FolderSource, ImageSource, open_images
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Comparison",
    "FolderSource",
    "ImageScores",
    "ImageSource",
    "PanelLayout",
    "StorageError",
    "WIDE",
    "compare_images",
    "draw_comparison",
    "file_content",
    "file_digest",
    "image_size",
    "list_folder",
    "open_images",
    "pad_to_factor",
    "padded_size",
    "psnr",
    "read_image",
    "save_png",
    "ssim",
    "stack",
    "to_float",
    "to_uint8",
    "upright_size",
    "visible_factor",
]
