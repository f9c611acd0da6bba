"""Errors of training that the user can fix."""

from flax_vae.errors import DataError, NotFiniteError, UserError

__all__ = ["DataError", "NotFiniteError", "RunError", "TrainError"]

# The base of all of them, including errors about images that `flax_vae` raises.
TrainError = UserError


class RunError(TrainError):
    """A run directory does not fit the requested run."""
