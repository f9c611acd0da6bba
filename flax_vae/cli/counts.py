"""Counts of the images that `flax-vae encode` found and encoded, as text."""


def counted(found: int, encoded: int, skipped: int, now: int) -> str:
    """Returns a line in which the numbers add up.

    Args:
      found: Number of images at the address.
      encoded: Number of images that have latents.
      skipped: Number of images that could not be read.
      now: Number of images encoded by this call.
    """
    parts = [f"{encoded:,} encoded" + (f", {now:,} of them now" if 0 < now < encoded else "")]
    if skipped:
        parts.append(f"{skipped:,} could not be read (skipped.jsonl lists them in the end)")
    if found > encoded + skipped:
        parts.append(f"{found - encoded - skipped:,} to be encoded by other processes")
    return f"{found:,} image{'s' if found > 1 else ''} found: {'; '.join(parts)}"
