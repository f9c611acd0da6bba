"""Divides the images of an evaluation into batches, as a pure function of their sizes."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from flax_vae.images import padded_size

MOST_SIZES = 32  # sizes that programs are compiled for
_MOST_PIXELS = 1 << 21  # of a batch, unless it is one image
_COMPARED = 512  # sizes that are compared with each other; more are rounded first

Size = tuple[int, int]


class ImageBatch(NamedTuple):
    """Images that are padded to one size and computed together on one device.

    Attributes:
      height: Height in pixels, padded.
      width: Width in pixels, padded.
      compiled_size: Number of images that the program of this size takes; smaller batches are filled up.
      indices: Number of each image in the source, in ascending order.
    """

    height: int
    width: int
    compiled_size: int
    indices: tuple[int, ...]


def plan_batches(sizes: Mapping[int, Size], batch_size: int, factor: int) -> list[ImageBatch]:
    """Divides images into batches of one padded size, the largest first, without regard to devices and processes.

    Sides are padded to multiples of the model's factor.  If the images have more than `MOST_SIZES` sizes then, those
    are joined whose images need the fewest additional pixels, so that there is a limit to what is compiled.

    Args:
      sizes: Height and width of each image, by its number.
      batch_size: Largest number of images in a batch.
      factor: Number of pixels per row and column of latents.
    """
    padded = {index: padded_size(*size, factor) for index, size in sizes.items()}
    joined = join_sizes(Counter(padded.values()), factor)
    groups: dict[Size, list[int]] = {}
    for index in sorted(padded):
        groups.setdefault(joined[padded[index]], []).append(index)
    return [
        batch
        for size in sorted(groups, key=lambda size: (-size[0] * size[1], size))
        for batch in _batches(size, groups[size], batch_size)
    ]


def _batches(size: Size, indices: list[int], batch_size: int) -> list[ImageBatch]:
    most = max(1, min(batch_size, _MOST_PIXELS // (size[0] * size[1])))
    count = -(-len(indices) // most)
    ends = [len(indices) * part // count for part in range(count + 1)]
    full = -(-len(indices) // count)
    return [ImageBatch(*size, full, tuple(indices[a:b])) for a, b in zip(ends, ends[1:], strict=False)]


def join_sizes(counts: Mapping[Size, int], factor: int, most: int = MOST_SIZES) -> dict[Size, Size]:
    """Returns the size that each size is padded to, of which there are at most `most`.

    Joins two sizes after another: each time those two that cost the fewest pixels.

    Args:
      counts: Number of images of each size.
      factor: Number of pixels that sides are multiples of.
      most: Largest number of different sizes.
    """
    joined = {size: size for size in counts}
    multiple = factor
    while len(set(joined.values())) > max(most, _COMPARED):
        multiple *= 2
        joined = {size: padded_size(*size, multiple) for size in counts}
    images = Counter[Size]()
    for size, count in counts.items():
        images[joined[size]] += count
    groups = sorted(images)
    sides = np.array(groups, np.int64).reshape(-1, 2)
    number = np.array([images[group] for group in groups], np.int64)
    alive = np.ones(len(groups), bool)
    into = np.arange(len(groups))
    while alive.sum() > most:
        left = np.flatnonzero(alive)
        union = np.maximum(sides[left, None], sides[None, left])
        pixels = number[left] * sides[left].prod(axis=1)
        cost = (number[left, None] + number[None, left]) * union.prod(axis=-1) - pixels[:, None] - pixels[None]
        cost[np.tril_indices(len(left))] = np.iinfo(np.int64).max
        first, second = (left[axis] for axis in np.unravel_index(cost.argmin(), cost.shape))
        sides[first] = np.maximum(sides[first], sides[second])
        number[first] += number[second]
        alive[second] = False
        into[into == second] = first
    ends = {group: (int(sides[end][0]), int(sides[end][1])) for group, end in zip(groups, into, strict=True)}
    return {size: ends[target] for size, target in joined.items()}
