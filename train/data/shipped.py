"""Finds the photographs that the package ships, which are used if no folder is given."""

from importlib import resources
from pathlib import Path

from flax_vae.images import ImageSource, open_images


def shipped_photographs() -> Path:
    """Returns the folder of photographs inside the installed package."""
    return Path(str(resources.files("flax_vae.train") / "photographs"))


def open_photographs(folder: str | None) -> ImageSource:
    """Opens the images of `DataConfig.folder`; None opens the photographs that the package ships.

    Raises:
      DataError: If there is nothing of that kind, or the package that reads it is not installed.
    """
    return open_images(str(shipped_photographs()) if folder is None else folder)
