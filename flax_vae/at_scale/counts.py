"""What `flax-vae encode` prints: what it found, what it compiles, and how many images became latents."""

from collections.abc import Iterator, Sequence

from flax_vae.at_scale.buckets import Shard
from flax_vae.at_scale.sizes import padded_size

_FEW = 8  # sizes that are worth no advice


def programs(shards: Sequence[Shard], multiple: int) -> Iterator[str]:
    """Yields a line on the sizes that will be compiled, with a multiple of fewer where there are many.

    Args:
      shards: what is to be computed.
      multiple: sides are padded to multiples of it, in pixels.
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


def counted(found: int, encoded: int, skipped: int, now: int) -> str:
    """One line whose numbers add up.

    Args:
      found: images in the folder.
      encoded: those of them that have latents.
      skipped: those of them that could not be read.
      now: those that this call encoded.
    """
    parts = [f"{encoded:,} encoded" + (f", {now:,} of them now" if 0 < now < encoded else "")]
    if skipped:
        parts.append(f"{skipped:,} could not be read (skipped.jsonl lists them in the end)")
    if found > encoded + skipped:
        parts.append(f"{found - encoded - skipped:,} to be encoded by other processes")
    return f"{found:,} image{'s' if found > 1 else ''} found: {'; '.join(parts)}"


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
