"""Divides images into batches and shards, as a pure function of their sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flax_vae.errors import UserError
from flax_vae.images import padded_size

_FEW = 8  # number of sizes up to which no advice is printed


@dataclass(frozen=True)
class ImageEntry:
    """One image of a source.

    Attributes:
      number: Position in the list of all images.
      name: Name within the source.
      height: Height in pixels, upright.
      width: Width in pixels, upright.
      label: Number of the class, `NO_LABEL` if the image has none; None if no image of the source has one.
      caption: Text that describes the image, empty if it has none; None if no image of the source has one.
    """

    number: int
    name: str
    height: int
    width: int
    label: int | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Batch:
    """Images that are padded to one size.

    Attributes:
      height: Height in pixels, padded.
      width: Width in pixels, padded.
      compiled_size: Batch size of the compiled program for this image size; smaller batches are filled up.
      pictures: Images in order of their numbers.
    """

    height: int
    width: int
    compiled_size: int
    pictures: tuple[ImageEntry, ...]

    @property
    def program(self) -> tuple[int, int, int]:
        """Batch size, height and width, for which a program is compiled."""
        return self.compiled_size, self.height, self.width


@dataclass(frozen=True)
class Shard:
    """Batches whose latents are stored in one file, in order."""

    number: int
    batches: tuple[Batch, ...]

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(len(batch.pictures) for batch in self.batches)


@dataclass(frozen=True)
class BatchLimits:
    """Limits of batches and shards.

    Attributes:
      batch_size: Maximum number of images in a batch.
      max_pixels: Maximum number of pixels in a batch; a larger image is computed alone.
      shard_size: Maximum number of images whose latents are stored in one file.

    Raises:
      UserError: If a limit is less than 1.
    """

    batch_size: int = 16
    max_pixels: int = 1 << 21
    shard_size: int = 1024

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"{name}={value} must be at least 1")


def plan_shards(
    pictures: Sequence[ImageEntry], multiple: int, grouping: BatchLimits, *, one_size: bool = False
) -> tuple[Shard, ...]:
    """Sorts images by padded size, and divides them into batches and shards.

    Each size needs a compiled program, so its batches are made equally large: 17 images with at most 16 per batch make
    batches of 9 and 8 for a program of 9.  The largest images come first, so that running out of memory is noticed at
    once.

    Args:
      pictures: Images in order of their numbers.
      multiple: Number of pixels; sides are padded to multiples of it.
      grouping: Limits of batches and shards.
      one_size: Whether all images of a shard must have one padded size.
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
        first = shards[-1][0] if shards else None
        apart = one_size and first is not None and (first.height, first.width) != (batch.height, batch.width)
        if not shards or apart or len(batch.pictures) > room:
            shards.append([])
            room = grouping.shard_size
        shards[-1].append(batch)
        room -= len(batch.pictures)
    return tuple(Shard(number, tuple(batches)) for number, batches in enumerate(shards))


def _batches(height: int, width: int, pictures: list[ImageEntry], grouping: BatchLimits) -> list[Batch]:
    most = max(1, min(grouping.batch_size, grouping.shard_size, grouping.max_pixels // (height * width)))
    count = -(-len(pictures) // most)
    compiled_size, ends = -(-len(pictures) // count), [len(pictures) * part // count for part in range(count + 1)]
    return [
        Batch(height, width, compiled_size, tuple(pictures[first:last]))
        for first, last in zip(ends, ends[1:], strict=False)
    ]


def programs(shards: Sequence[Shard], multiple: int) -> Iterator[str]:
    """Yields a line with the number of sizes to compile; if there are many, with advice on `--multiple`.

    Args:
      shards: Shards to compute.
      multiple: Number of pixels; sides are padded to multiples of it.
    """
    sizes = {batch.program for shard in shards for batch in shard.batches}
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
