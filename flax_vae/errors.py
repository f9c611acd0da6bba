"""What the person who called can put right."""

from collections.abc import Sequence

from flax_vae.convert.errors import shorten


def first_of(problems: Sequence[str], most: int = 5) -> str:
    """Joins the first few of many sentences, and says how many more there are."""
    return shorten(problems, most, longest=None, separator="; ")


class UserError(Exception):
    """One sentence that names the value, the expectation and the remedy; the commands print it without a traceback."""


class DataError(UserError):
    """An image, or a folder of them, is not fit for what is to be done with it."""


class NotFiniteError(UserError):
    """Weights, a loss or a gradient are NaN or infinite."""
