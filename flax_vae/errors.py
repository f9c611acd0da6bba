"""Errors that the user can fix."""

from collections.abc import Sequence

from flax_vae.convert.errors import shorten


def first_of(problems: Sequence[str], most: int = 5) -> str:
    """Joins the first few of many sentences, and adds the number of the others."""
    return shorten(problems, most, longest=None, separator="; ")


class UserError(Exception):
    """An error that the user can fix, in one sentence; commands print it without a traceback."""


class DataError(UserError):
    """An image or a source of images cannot be used."""


class NotFiniteError(UserError):
    """Weights, a loss or a gradient are NaN or infinite."""
