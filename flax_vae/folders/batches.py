"""Which images are computed together, and which file their latents go to: a pure function of their sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flax_vae.errors import UserError
from flax_vae.images import padded_size

_FEW = 8  # sizes that are worth no advice


@dataclass(frozen=True)
class ImageEntry:
    """One image of a source.

    Attributes:
      number: Position in the list of all images.
      name: Name within the source.
      height: Height in pixels, upright.
      width: Width in pixels, upright.
    """

    number: int
    name: str
    height: int
    width: int


@dataclass(frozen=True)
class Batch:
    """Images that are padded to one size.

    Attributes:
      height: Height in pixels, padded.
      width: Width in pixels, padded.
      full: Images that the program of this size takes; a batch of fewer is filled up.
      pictures: Images in order of their numbers.
    """

    height: int
    width: int
    full: int
    pictures: tuple[ImageEntry, ...]


@dataclass(frozen=True)
class Shard:
    """The batches whose latents stand in one file, in order."""

    number: int
    batches: tuple[Batch, ...]

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(len(batch.pictures) for batch in self.batches)


@dataclass(frozen=True)
class BatchLimits:
    """How images are put together.

    Attributes:
      batch_size: Images that are computed at once, at most.
      max_pixels: Pixels of all images of a batch together, at most; a larger image is computed alone.
      shard_size: Images whose latents go to one file.

    Raises:
      UserError: If one is less than 1.
    """

    batch_size: int = 16
    max_pixels: int = 1 << 21
    shard_size: int = 1024

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"{name}={value} must be at least 1")


def plan_shards(pictures: Sequence[ImageEntry], multiple: int, grouping: BatchLimits) -> tuple[Shard, ...]:
    """Sorts images by padded size and cuts them into batches, and those into shards.

    Each size is one program to compile, so its batches are made equally full: of 17 images at most 16 at a time, the
    batches are 9 and 8 and the program takes 9.  The largest come first: what does not fit into memory fails at once,
    and not after a night.

    Args:
      pictures: Images in order of their numbers.
      multiple: Pixels that sides are padded to multiples of.
      grouping: Limits of batches and shards.
    """
    buckets: dict[tuple[int, int], list[ImageEntry]] = {}
    for picture in pictures:
        buckets.setdefault(padded_size(picture.height, picture.width, multiple), []).append(picture)
    batches = [
        batch
        for size in sorted(buckets, key=lambda size: (-size[0] * size[1], size))
        for batch in _batches(*size, buckets[size], grouping)
    ]
    shards: list[list[Batch]] = []
    room = 0
    for batch in batches:
        if not shards or len(batch.pictures) > room:
            shards.append([])
            room = grouping.shard_size
        shards[-1].append(batch)
        room -= len(batch.pictures)
    return tuple(Shard(number, tuple(batches)) for number, batches in enumerate(shards))


def _batches(height: int, width: int, pictures: list[ImageEntry], grouping: BatchLimits) -> list[Batch]:
    most = max(1, min(grouping.batch_size, grouping.shard_size, grouping.max_pixels // (height * width)))
    count = -(-len(pictures) // most)
    full, ends = -(-len(pictures) // count), [len(pictures) * part // count for part in range(count + 1)]
    return [
        Batch(height, width, full, tuple(pictures[first:last])) for first, last in zip(ends, ends[1:], strict=False)
    ]


def programs(shards: Sequence[Shard], multiple: int) -> Iterator[str]:
    """Yields a line on the sizes that will be compiled, with a multiple of fewer where there are many.

    Args:
      shards: Shards that are to be computed.
      multiple: Pixels that sides are padded to multiples of.
    """
    sizes = {(batch.height, batch.width, batch.full) for shard in shards for batch in shard.batches}
    if not sizes:
        return
    what = f"of images, padded to multiples of {multiple},"
    line = (
        f"{len(sizes):,} sizes {what} are compiled, each by itself" if len(sizes) > 1 else f"1 size {what} is compiled"
    )
    if len(sizes) > _FEW:
        line += _fewer(shards, multiple, len(sizes))
    yield line


def _fewer(shards: Sequence[Shard], multiple: int, count: int) -> str:
    pictures = [picture for shard in shards for batch in shard.batches for picture in batch.pictures]

    def padded(by: int) -> list[tuple[int, int]]:
        return [padded_size(picture.height, picture.width, by) for picture in pictures]

    pixels = sum(height * width for height, width in padded(multiple))
    for factor in (2, 4, 8, 16, 32):
        sizes = padded(multiple * factor)
        if len(set(sizes)) <= max(_FEW, count // 4):
            more = sum(height * width for height, width in sizes) / pixels - 1
            return f"; --multiple {multiple * factor} makes them {len(set(sizes)):,}, with {more:.0%} more pixels"
    return ""
