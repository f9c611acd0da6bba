"""Photographs, and the random crops that a step sees of them.

What a crop shows is a pure function of (seed, step, index): no iterator has a state that a checkpoint would have to
hold, and any machine can make any example.
"""

import itertools
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from train.config import DataConfig
from train.errors import DataError
from train.images import image_size, list_images, read_image

SHIPPED_HELD_OUT = "chelsea.jpg"
_KEEP_BYTES = 1 << 30  # decoded photographs up to this much stay in memory, the rest are decoded when drawn
_SHOW = 5  # bad files named in one error


def shipped_photographs() -> Path:
    """The folder of photographs inside the installed package."""
    return Path(str(resources.files("train") / "photographs"))


class Photographs:
    """A folder of images, one of them held out.

    All headers are read at once, so that a file that cannot be used ends the run before it begins.

    Attributes:
      names: of the photographs that are trained on, relative to the folder, sorted.
      held_out_name: of the one that is not.
    """

    def __init__(self, config: DataConfig):
        """Lists and checks the files.

        Raises:
          DataError: if there is no such folder, fewer than two images, no such held-out image, or if a file is
            unreadable or smaller than the crop.
        """
        self._folder = Path(config.folder) if config.folder is not None else shipped_photographs()
        if not self._folder.is_dir():
            raise DataError(f"{self._folder} is no folder; name one that holds images")
        self._crop_size = config.crop_size
        self._orders = list(itertools.permutations(range(3))) if config.shuffle_channels else [(0, 1, 2)]
        names = list_images(self._folder)
        if len(names) < 2:
            raise DataError(
                f"{self._folder} holds {len(names)} images; training needs at least two, one of them to be held out"
            )
        self.held_out_name = _choose_held_out(config, names)
        self.names = [name for name in names if name != self.held_out_name]
        self._kept: dict[str, UInt8[np.ndarray, "h w 3"]] = {}
        self._open()

    def held_out(self) -> UInt8[np.ndarray, "h w 3"]:
        """The photograph that no step sees."""
        return read_image(self._folder / self.held_out_name)

    def crop(self, seed: int, step: int, index: int) -> UInt8[np.ndarray, "s s 3"]:
        """Example `index` of update `step`: a crop, flipped left to right every other time.

        Every photograph is equally likely, whatever its size, and so is every order of the channels if they are
        shuffled.

        Raises:
          DataError: if the file has become unreadable.
        """
        # Raw words of SeedSequence, not a Generator: NumPy promises that these never change between versions.
        words = np.random.SeedSequence((seed, step, index)).generate_state(5)
        photograph = self._read(self.names[_below(len(self.names), words[0])])
        size = self._crop_size
        top = _below(photograph.shape[0] - size + 1, words[1])
        left = _below(photograph.shape[1] - size + 1, words[2])
        crop = photograph[top : top + size, left : left + size]
        crop = crop[:, ::-1] if words[3] & 1 else crop
        return crop[..., self._orders[_below(len(self._orders), words[4])]]

    def batch(self, seed: int, step: int, batch_size: int) -> Float[np.ndarray, "b s s 3"]:
        """All examples of update `step`, in [-1, 1]."""
        return to_float(np.stack([self.crop(seed, step, index) for index in range(batch_size)]))

    def _open(self) -> None:
        problems, total = [], 0
        for name in [*self.names, self.held_out_name]:
            path = self._folder / name
            try:
                height, width = image_size(path)
                if min(height, width) < self._crop_size and name != self.held_out_name:
                    raise DataError(f"{path} is {height} x {width}, smaller than crop_size={self._crop_size}")
                total += 3 * height * width
                if total <= _KEEP_BYTES:
                    self._kept[name] = read_image(path)
            except DataError as error:
                problems.append(str(error))
        if problems:
            more = f"; and {len(problems) - _SHOW} more" if len(problems) > _SHOW else ""
            raise DataError("; ".join(problems[:_SHOW]) + more)

    def _read(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        kept = self._kept.get(name)
        return read_image(self._folder / name) if kept is None else kept


def to_float(images: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """8-bit images as float32 in [-1, 1]."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_uint8(images: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Images in [-1, 1], clipped and rounded to 8 bits: the inverse of `to_float`."""
    return np.round((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def _choose_held_out(config: DataConfig, names: list[str]) -> str:
    if config.held_out is None:
        return SHIPPED_HELD_OUT if config.folder is None else names[-1]
    if config.held_out not in names:
        raise DataError(f"held_out={config.held_out!r} is none of the {len(names)} images, such as {names[0]!r}")
    return config.held_out


def _below(bound: int, word: np.uint32) -> int:
    """A 32-bit word spread evenly over 0 .. bound - 1."""
    return int(word) * bound >> 32
