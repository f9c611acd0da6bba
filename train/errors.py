"""What the person who started a run can put right."""

from flax_vae.errors import DataError, NotFiniteError, UserError

__all__ = ["DataError", "NotFiniteError", "RunError", "TrainError"]

# One base for all of them, also for the images that `flax_vae` refuses: whoever catches it has what can be put right.
TrainError = UserError


class RunError(TrainError):
    """A run directory does not fit the run that was asked for."""
