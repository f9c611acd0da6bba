"""Errors of models at work that the user can fix; their base is `flax_vae.convert.errors.FlaxVaeError`."""

from flax_vae.convert.errors import FlaxVaeError

__all__ = ["DataError", "FlaxVaeError", "NotFiniteError", "UserError"]


class UserError(FlaxVaeError):
    """A command cannot do what was asked for."""


class DataError(UserError):
    """An image or a source of images cannot be used."""


class NotFiniteError(UserError):
    """Weights, a loss or a gradient are NaN or infinite."""
