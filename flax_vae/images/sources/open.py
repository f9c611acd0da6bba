"""Opens the images at an address."""

import os
from pathlib import Path

from flax_vae.convert.console import printable
from flax_vae.convert.files import is_address
from flax_vae.errors import DataError
from flax_vae.images.formats import ADDRESSES, SUFFIXES
from flax_vae.images.sources.addresses import file_name, split_options, without_options
from flax_vae.images.sources.array_record import ArrayRecordSource
from flax_vae.images.sources.arrays import ArraySource
from flax_vae.images.sources.folder import FolderSource
from flax_vae.images.sources.hugging_face import HuggingFaceSource
from flax_vae.images.sources.parquet import ParquetSource
from flax_vae.images.sources.protocol import ImageSource, SingleImageSource
from flax_vae.images.sources.tar import TAR_SUFFIXES, TarSource


def open_images(address: str) -> ImageSource:
    """Opens the images at an address, at least one.

    Args:
      address: Address of the images, on disk or, except the last, in a bucket (`gs://`, `s3://`); one of
        - `FOLDER`, searched recursively; names are paths relative to it;
        - `IMAGE`, one image file;
        - `FILE.tar[,image=jpg]`, archives as WebDataset packs them; see `TarSource`;
        - `FILE.parquet[,column=image][,label=label][,caption=text]`, tables of encoded images (the `parquet` extra);
          see `ParquetSource`;
        - `FILE.npy` or `FILE.npz`, uint8 of shape (n, h, w, 3) or (n, h, w, 1); see `ArraySource`;
        - `FILE.array_record`, whose records are encoded images or TensorFlow's examples (the `arrayrecord` extra), with
          the options of a table; see `ArrayRecordSource`;
        - `hf:NAME`, with the options of a table and `split=train`, a Hugging Face data set, where NAME is a name on the
          hub, a folder that `save_to_disk` wrote, or one that `load_dataset` understands (the `datasets` extra).
        Several archives, tables or ArrayRecord files are one source, written with braces, `{000..099}` or `{a,b}`, or
        with wildcards.

    Returns:
      Source of the images, which reads one when it is asked for.

    Examples:
      >>> np.save("images.npy", np.zeros((2, 16, 24, 3), np.uint8))
      >>> images = open_images("images.npy")
      >>> len(images), images[0].shape, images.size(1)
      (2, (16, 24, 3), (16, 24))

    Raises:
      DataError: If the address holds no image, or needs a package that is not installed.
    """
    source = _open(address)
    if not len(source):
        raise DataError(
            f"{source.where} holds no image; expected at least one: give another address", path=source.where
        )
    return source


def _open(address: str) -> ImageSource:
    if address.startswith("hf:"):
        return HuggingFaceSource(address)
    if not is_address(address) and Path(address).is_dir():
        return FolderSource(Path(address))
    place = without_options(address)
    if place.endswith(TAR_SUFFIXES):
        return TarSource(address)
    if place.endswith(".parquet"):
        return ParquetSource(address)
    if ".array_record" in file_name(place):
        return ArrayRecordSource(address)
    if place != address:
        split_options(address, ())  # refuses them
    if address.endswith((".npy", ".npz")):
        return ArraySource(address)
    if is_address(address) and os.path.splitext(address)[1].lower() not in SUFFIXES:
        return FolderSource(address)
    if not is_address(address) and not os.path.exists(address):
        raise DataError(f"{printable(address)} does not exist; give {ADDRESSES}")
    return SingleImageSource(address)
