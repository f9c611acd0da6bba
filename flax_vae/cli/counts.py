"""How many images `flax-vae encode` found, and how many of them became latents."""


def counted(found: int, encoded: int, skipped: int, now: int) -> str:
    """One line whose numbers add up.

    Args:
      found: Images at the address.
      encoded: Images that have latents.
      skipped: Images that could not be read.
      now: Images that this call encoded.
    """
    parts = [f"{encoded:,} encoded" + (f", {now:,} of them now" if 0 < now < encoded else "")]
    if skipped:
        parts.append(f"{skipped:,} could not be read (skipped.jsonl lists them in the end)")
    if found > encoded + skipped:
        parts.append(f"{found - encoded - skipped:,} to be encoded by other processes")
    return f"{found:,} image{'s' if found > 1 else ''} found: {'; '.join(parts)}"
