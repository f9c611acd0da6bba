"""Reads photographs and cuts the random crops of a training step.

A crop is a pure function of (seed, step, index): iterators have no state that a checkpoint would have to hold, and any
machine can make any example.
"""

import threading
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from flax_vae.convert.console import printable
from flax_vae.images import (
    ImageSource,
    ImageSubset,
    ResizedSource,
    StorageError,
    in_threads,
    open_images,
    require_storage,
    scan_images,
    to_float,
)
from flax_vae.train.config import DataConfig, ValidationConfig
from flax_vae.train.data.crops import WORDS, cut, fitted_size, resize_shorter_side, uniform_below
from flax_vae.train.data.refusals import TooSmallError, refusal, too_many
from flax_vae.train.data.shipped import open_photographs
from flax_vae.train.errors import DataError

SHIPPED_HELD_OUT = "chelsea.jpg"


class Photographs:
    """A source of images, one of which may be held out.  Threads may draw crops concurrently.

    All headers are read first, so that files that cannot be used are reported before the run begins.

    Attributes:
      held_out_name: Name of the one photograph that is not trained on, or None.
      source: Source of all images, the held-out one included.
    """

    def __init__(self, config: DataConfig, *, keep_bytes: int = 1 << 30, hold_out: bool = True):
        """Opens the source and checks the images.

        Args:
          config: Settings of the data.
          keep_bytes: Size of decoded photographs that stay in memory; more of them are decoded when drawn.
          hold_out: Whether to hold one out even if `config` does not name it.

        Raises:
          DataError: If the source or the held-out image does not exist, there is none to train on, or the held-out
            image or, unless `config` says to skip them, another is damaged or smaller than the crop.
        """
        self._config = config
        self.source = open_photographs(config.folder)
        hold_out = hold_out or config.held_out is not None
        if len(self.source) < 2 and hold_out:
            raise DataError(
                f"{self.source.where} holds {len(self.source)} images; training needs at least two, one of them to "
                f"be held out{''.join(f'; {note}' for note in self.source.notes)}"
            )
        self._held_out = _choose_held_out(config, self.source) if hold_out else None
        self.held_out_name = None if self._held_out is None else printable(self.source.name(self._held_out))
        self._total = len(self.source) - hold_out  # images to train on
        self._kept: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()
        self._open(keep_bytes)

    @property
    def names(self) -> list[str]:
        """Names of the photographs that are trained on, in order."""
        return [printable(self.source.name(index)) for index in range(len(self.source)) if index != self._held_out]

    @property
    def crop_shape(self) -> tuple[int, int, int]:
        """Shape of one crop: height, width, channels."""
        return self._config.crop_size, self._config.crop_size, 3

    @property
    def problems(self) -> list[str]:
        """One sentence for each image that has been skipped so far."""
        with self._lock:
            return [self._bad[index] for index in sorted(self._bad)]

    def held_out(self) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the whole photograph that is not trained on."""
        return self.held_out_source()[0]

    def held_out_source(self) -> ImageSource:
        """Returns the source of that photograph alone.

        Raises:
          DataError: If none is held out.
        """
        if self._held_out is None:
            raise DataError(f"no image of {self.source.where} is held out; name one with --held-out")
        return _HeldOut(self.source, self._held_out, self._config.resize)

    def crop(self, seed: int, step: int, index: int) -> UInt8[np.ndarray, "s s 3"]:
        """Returns example `index` of update `step`.

        Every photograph is equally likely, regardless of its size, and so is every order of the channels if they are
        shuffled.  Instead of a photograph that is skipped another is drawn; which one depends on these three numbers
        and on the images, not on when the fault was found.

        Args:
          seed: Seed of the run.
          step: Number of the update.
          index: Number of the example in its batch.

        Raises:
          DataError: If an image has become unreadable, or too many are skipped.
        """
        attempt = 0
        while True:
            entropy = (seed, step, index, attempt) if attempt else (seed, step, index)
            # Raw words of SeedSequence, not a Generator: NumPy promises that these never change between versions.
            words = np.random.SeedSequence(entropy).generate_state(WORDS)
            drawn = uniform_below(self._total, words[0])
            photograph = self._read(drawn + (self._held_out is not None and drawn >= self._held_out))
            if photograph is not None:
                return cut(photograph, words, self._config)
            attempt += 1

    def batch(self, seed: int, step: int, batch_size: int) -> Float[np.ndarray, "b s s 3"]:
        """Returns all examples of update `step`, in [-1, 1].

        Args:
          seed: Seed of the run.
          step: Number of the update.
          batch_size: Number of examples.
        """
        return to_float(np.stack([self.crop(seed, step, index) for index in range(batch_size)]))

    def _open(self, keep_bytes: int) -> None:
        found = scan_images(self.source, (index for index in range(len(self.source)) if index != self._held_out))
        errors = found.errors
        keep, total = [], 0
        for index, size in found.sizes.items():
            try:
                height, width = self._check_size(index, *size)
            except DataError as error:
                errors[index] = error
                continue
            total += 3 * height * width
            if total <= keep_bytes:
                keep.append(index)
        for index, image in in_threads(self._load, keep):
            if isinstance(image, DataError):
                errors[index] = image
            else:
                self._kept[index] = image
        require_storage(errors.values())
        held_out = self._refused_held_out(errors)
        if self._config.bad_files == "skip":
            self._bad |= {index: str(error) for index, error in errors.items()}
            self._check_count()
            errors = {}
        if errors or held_out is not None:
            raise self._refusal(errors, held_out)

    def _refused_held_out(self, errors: Mapping[int, DataError]) -> str | None:
        """Returns what is wrong with the held-out image, if anything, and suggests another."""
        if self._held_out is None:
            return None
        try:
            self.held_out()
        except StorageError:
            raise
        except DataError as error:
            good = [i for i in range(len(self.source)) if i != self._held_out and i not in errors]
            such = f", such as {printable(self.source.name(good[-1]))!r}" if good else ""
            return f"{error} (this image is held out); --held-out PATH names another{such}"
        return None

    def _refusal(self, errors: Mapping[int, DataError], held_out: str | None = None) -> DataError:
        ordered = [errors[index] for index in sorted(errors)]
        return refusal(self.source.where, ordered, self._total, self._config.crop_size, held_out)

    def _read(self, index: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """Returns a photograph ready to be cropped, or None if it has to be skipped."""
        if index in self._bad:
            return None
        try:
            kept = self._kept.get(index)
            return self._load(index) if kept is None else kept
        except StorageError:
            raise
        except DataError as error:
            if self._config.bad_files == "refuse":
                raise self._refusal({index: error}) from error
            with self._lock:
                self._bad[index] = str(error)
                self._check_count()
            return None

    def _load(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        image = self.source[index]
        self._check_size(index, *image.shape[:2])
        return resize_shorter_side(image, self._config.resize)

    def _check_size(self, index: int, height: int, width: int) -> tuple[int, int]:
        name = self.source.printable_name(index)
        height, width = fitted_size(height, width, self._config.resize)
        if min(height, width) < self._config.crop_size:
            raise TooSmallError(f"{name} is {height} x {width}, smaller than crop_size={self._config.crop_size}")
        if Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS:
            raise DataError(
                f"{name} would be {height} x {width} after resize={self._config.resize}, more than "
                f"{Image.MAX_IMAGE_PIXELS:,} pixels; cut it up or remove it"
            )
        return height, width

    def _check_count(self) -> None:
        total = self._total
        # 1% of sixty photographs is less than one: a few may always be skipped, but never most of them.
        most = max(self._config.max_bad_fraction * total, min(self._config.max_bad_count, total // 2))
        if len(self._bad) > most:
            reasons = [self._bad[index] for index in sorted(self._bad)]
            raise too_many(self.source.where, reasons, total, self._config.max_bad_fraction)


class _HeldOut(ImageSubset):
    """One image of a source, resized like those that are trained on."""

    def __init__(self, source: ImageSource, index: int, resize: int | None):
        super().__init__(source, [index], f"{source.where}/{printable(source.name(index))}")
        self._resize = resize

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return resize_shorter_side(super().__getitem__(index), self._resize)

    def size(self, index: int) -> tuple[int, int]:
        return fitted_size(*super().size(index), self._resize)

    def decode(self, index: int, content: bytes | memoryview) -> UInt8[np.ndarray, "h w 3"]:
        return resize_shorter_side(super().decode(index, content), self._resize)


def held_out_image(config: DataConfig) -> ImageSource:
    """Returns a source of the one image that a run with these settings never trains on, resized if they say so.

    Args:
      config: Settings of the images.

    Raises:
      DataError: If the source or the image does not exist.
    """
    source = open_photographs(config.folder)
    return _HeldOut(source, _choose_held_out(config, source), config.resize)


def validation_images(validation: ValidationConfig, data: DataConfig) -> ImageSource:
    """Returns the images by which a run is judged: those of `validation`, or else the one that it holds out.

    Args:
      validation: Settings of the validation.
      data: Settings of the images.

    Raises:
      DataError: If the address holds no image, or the held-out image does not exist.
    """
    if validation.data is None:
        return held_out_image(data)
    source = open_images(validation.data)
    if validation.resize is not None:
        source = ResizedSource(source, validation.resize, validation.crop)
    if validation.images is not None and validation.images < len(source):
        source = ImageSubset(source, range(validation.images), source.where)
    return source


def _choose_held_out(config: DataConfig, source: ImageSource) -> int:
    count = len(source)
    wanted = SHIPPED_HELD_OUT if config.folder is None and config.held_out is None else config.held_out
    if wanted is None:
        return count - 1
    for index in range(count):
        if printable(source.name(index)) == printable(wanted):
            return index
    example = printable(source.name(0))
    raise DataError(
        f"held_out={printable(wanted)!r} is not among the {count} images; give the name of one, such as {example!r}"
    )
