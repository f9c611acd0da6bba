"""Errors of a training run that the user can fix; their base is `flax_vae.convert.errors.FlaxVaeError`."""

from flax_vae.errors import DataError, NotFiniteError, UserError

__all__ = ["DataError", "NotFiniteError", "RunError", "TrainError", "UserError"]


class TrainError(UserError):
    """A run, or a command about a run, cannot do what was asked for."""


class RunError(TrainError):
    """A run directory does not fit the requested run."""
