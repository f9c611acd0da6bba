"""What can be wrong with weights: the tensors themselves, or the file that should hold them."""


class ConversionError(ValueError):
    """The tensors are not those of the architecture: missing, unexpected, misshapen or of another layout."""


class FileError(ValueError):
    """A file is there, but its content is not what its name promises."""
