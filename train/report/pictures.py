"""Writes pictures that compare images with their reconstructions."""

from collections.abc import Sequence
from pathlib import Path

from flax_vae.images import Comparison, PanelLayout, draw_comparison, save_png, stack

_LAYOUT = PanelLayout()
_AMPLIFIED = 4  # makes small differences visible; equal for all images, so that they can be compared


def save_comparisons(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes a row per image, under its name and scores: original, reconstruction and difference.

    The difference is absolute per channel and four times as bright.
    """
    rows = []
    for comparison in comparisons:
        caption = "   ".join([comparison.scores.name, *comparison.scores.in_words()])
        rows.append(draw_comparison(comparison, [caption], amplified=_AMPLIFIED, layout=_LAYOUT))
    save_png(path, stack(rows, _LAYOUT), force=True)
