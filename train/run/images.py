"""Compares the images of a run with those of its start."""

from flax_vae.images import StorageError
from flax_vae.train.config import TrainConfig
from flax_vae.train.data import Photographs, data_listing, how_listed
from flax_vae.train.errors import DataError, RunError
from flax_vae.train.run.directory import RunDirectory


def open_data(
    config: TrainConfig, run: RunDirectory, *, accept: bool = False
) -> tuple[Photographs, dict[str, str], list[str]]:
    """Opens the images and compares them, and the settings, with those of the start of the run; writes nothing.

    Args:
      config: Settings, as returned by `RunDirectory.fixed`.
      run: Directory of the run.
      accept: Whether to resume with changed images.

    Returns:
      The images, their listing, and all changes since the start of the run.

    Raises:
      TrainError: If the images cannot be used, or have changed without `accept`.
    """
    stored, before = run.stored_config(), run.stored_listing()
    try:
        photographs = Photographs(config.data, hold_out=config.validation.data is None)
    except StorageError:
        raise
    except DataError as error:
        if stored is None or not run.steps or stored.data.folder == config.data.folder:
            raise
        raise RunError(
            f"{run.path} holds a run of data.folder={stored.data.folder!r}, in whose place {config.data.folder!r} "
            f"cannot be used: {error}; leave --data out to resume, or choose another workdir",
            path=run.path,
        ) from error
    listing = data_listing(photographs, None if before is None else how_listed(before))
    changes = [*run.check(config), *run.check_data(config, listing, accept=accept)]
    return photographs, listing, changes
