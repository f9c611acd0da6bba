"""What the person who started a run can put right."""


class TrainError(Exception):
    """One sentence that names the value, the expectation and the remedy; the command prints it without a traceback."""


class DataError(TrainError):
    """A photograph, or a folder of them, cannot be trained on."""


class RunError(TrainError):
    """A run directory does not fit the run that was asked for."""


class NotFiniteError(TrainError):
    """The loss or the gradient became NaN or infinite."""
