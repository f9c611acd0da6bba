"""Builds one error for all images that cannot be used, with one flag for each kind of problem."""

from collections.abc import Sequence

from flax_vae.convert.errors import shorten_sentences
from flax_vae.train.errors import DataError

_REMEDY = "; replace or remove it"  # ends the error of a single image; the joint error names a flag instead


class TooSmallError(DataError):
    """An image is smaller than the crops."""


def refusal(
    where: str, errors: Sequence[DataError], total: int, crop_size: int, held_out: str | None = None
) -> DataError:
    """Returns one error for all images that cannot be used.

    Args:
      where: Address of the images.
      errors: Error of each image that is trained on and cannot be used, in order.
      total: Number of images that are trained on.
      crop_size: Side of the crops in pixels.
      held_out: Sentence on the held-out image if that cannot be used.
    """
    small = [str(error) for error in errors if isinstance(error, TooSmallError)]
    damaged = [str(error).removesuffix(_REMEDY) for error in errors if not isinstance(error, TooSmallError)]
    sentences = []
    if small:
        advice = f"--resize {crop_size} scales every image until its shorter side has {crop_size} pixels"
        sentences.append(f"{_counted(small, total, 'are too small')}; {advice}")
    if damaged:
        them = "it" if len(damaged) == 1 else "them"
        sentences.append(f"{_counted(damaged, total, 'cannot be used')}; --bad-files skip trains without {them}")
    if held_out is not None:
        sentences.append(held_out)
    return DataError(f"{where}: {'. '.join(sentences)}")


def too_many(where: str, reasons: Sequence[str], total: int, fraction: float) -> DataError:
    """Returns the error for more unusable images than may be skipped."""
    enough = min(-(-100 * len(reasons) // total) / 100, 0.99)  # in hundredths, rounded up
    return DataError(
        f"{where}: {len(reasons)} of {total} images cannot be used, more than max_bad_fraction={fraction}: "
        f"{shorten_sentences([reason.removesuffix(_REMEDY) for reason in reasons])}; replace or remove them, or train "
        f"without them with --data.max-bad-fraction {enough}"
    )


def _counted(reasons: Sequence[str], total: int, what: str) -> str:
    return reasons[0] if len(reasons) == 1 else f"{len(reasons)} of {total} images {what}: {shorten_sentences(reasons)}"
