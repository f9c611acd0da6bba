"""Arrays of images in `.npy` and `.npz` files, whose headers are checked before memory is allocated."""

import math
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import UInt8

from flax_vae.convert.console import printable
from flax_vae.convert.errors import one_line
from flax_vae.convert.files import check_members, require_regular
from flax_vae.errors import DataError
from flax_vae.images.sources.addresses import copied
from flax_vae.images.sources.annotations import label_number
from flax_vae.images.sources.protocol import ImageSource


class ImageArray(NamedTuple):
    """The arrays of a file.

    Attributes:
      images: Images.
      labels: Number of the class of each image; None if the file has none.
      captions: Text for each image; None if the file has none.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    captions: np.ndarray | None = None


class ArraySource(ImageSource):
    """One array of equally large 8-bit images; an `.npy` file stays on the disk and is mapped into memory.

    An `.npz` file is read into memory.  Its images are the array `images` or `arr_0`, or else the only one; its labels
    are `labels` or `label`, or beside `arr_0` the array `arr_1` if it holds an integer for each image; its captions are
    `captions` or `caption`.  Objects in a bucket are copied to the cache folder first.
    """

    def __init__(self, place: str):
        """Opens the file.

        Args:
          place: Path or address.

        Raises:
          DataError: If the file cannot be read, is not an array (n, h, w, 3) or (n, h, w, 1) of 8-bit integers, or its
            labels or captions do not belong to the images.
          StorageError: If an object cannot be fetched.
        """
        self.where = printable(place)
        self._images, self._labels, self._captions = load_array(copied(place))
        shape, dtype = self._images.shape, self._images.dtype
        if dtype != np.uint8:
            raise DataError(
                f"{self.where} has dtype {dtype}; expected uint8 in [0, 255]: convert the images", path=place
            )
        if len(shape) != 4 or shape[3] not in (1, 3):
            hint = "move the channels last" if len(shape) == 4 and shape[1] in (1, 3) else "store such an array"
            raise DataError(
                f"{self.where} has shape {shape}; expected (n, h, w, 3) or (n, h, w, 1): {hint}", path=place
            )
        for name, kind, values in (("labels", "iu", self._labels), ("captions", "U", self._captions)):
            if values is not None and (values.shape != shape[:1] or values.dtype.kind not in kind):
                what = "an integer" if kind == "iu" else "a string"
                raise DataError(
                    f"{self.where} has {name} of shape {values.shape} and dtype {values.dtype}; expected {what} for "
                    f"each of {shape[0]:,} images",
                    path=place,
                )
        if self._labels is not None:
            self.label_notes = ("labels are an array in the file",)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return _to_rgb(self._images[index])

    def size(self, index: int) -> tuple[int, int]:
        """Returns height and width, which all images share."""
        return self._images.shape[1], self._images.shape[2]

    def content(self, index: int) -> memoryview:
        """Returns the bytes of the pixels."""
        return np.ascontiguousarray(self._images[index]).reshape(-1).data

    def decode(self, index: int, content: bytes | memoryview) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the pixels, grey ones as three equal channels."""
        return _to_rgb(np.frombuffer(content, np.uint8).reshape(self._images.shape[1:]))

    def label(self, index: int) -> int | None:
        """Returns the label of an image; -1 is none."""
        value = -1 if self._labels is None else int(self._labels[index])
        return None if value == -1 else label_number(value, self.printable_name(index))

    def caption(self, index: int) -> str | None:
        """Returns the caption of an image."""
        return None if self._captions is None else str(self._captions[index])


def _to_rgb(image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(image) if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


def load_array(file: Path) -> ImageArray:
    """Returns the array of an `.npy` file as a memory map, or those of an `.npz` file in memory; see `ArraySource`.

    Raises:
      DataError: If the file is missing or damaged, holds no such array, or would take far more memory than its size.
    """
    try:
        require_regular(file)
        return _load_members(file) if zipfile.is_zipfile(file) else ImageArray(_map(file))
    except Exception as error:  # NumPy and zipfile raise nearly anything on a damaged file
        raise DataError(
            f"{printable(file)} cannot be read as an array ({one_line(error):.300}); name an .npy or .npz file",
            path=file,
        ) from error


def _map(file: Path) -> np.ndarray:
    with file.open("rb") as stream:
        _check_header(stream, file.stat().st_size)
    return np.load(file, mmap_mode="r", allow_pickle=False)


def _load_members(file: Path) -> ImageArray:
    with zipfile.ZipFile(file) as archive:
        members = {
            member.filename.removesuffix(".npy"): member
            for member in check_members(archive)
            if member.filename.endswith(".npy")
        }

        def load(*names: str) -> np.ndarray | None:
            name = next((name for name in names if name in members), None)
            if name is None:
                return None
            with archive.open(members[name]) as stream:
                _check_header(stream, members[name].file_size)
            with archive.open(members[name]) as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)

        images = load("images", "arr_0", *(members if len(members) == 1 else ()))
        if images is None:
            raise ValueError(f"of its {len(members)} arrays none is called images")
        labels = load("labels", "label")
        if labels is None and "arr_0" in members and "images" not in members:
            second = load("arr_1")  # ADM's batches have labels here, and other files anything
            if second is not None and second.dtype.kind in "iu" and second.shape == images.shape[:1]:
                labels = second
        return ImageArray(images, labels, load("captions", "caption"))


def _check_header(stream: IO[bytes], size: int) -> None:
    """Compares the shape in a header with the size of the data."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"it claims the shape {shape} of {dtype}, and has {size:,} bytes")
