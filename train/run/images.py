"""The images of a run, compared with those that it was begun with."""

from flax_vae.images import StorageError
from flax_vae.train.config import TrainConfig
from flax_vae.train.data import Photographs, data_listing, how_listed
from flax_vae.train.errors import DataError, RunError
from flax_vae.train.run.directory import RunDirectory


def open_data(
    config: TrainConfig, run: RunDirectory, *, accept: bool = False
) -> tuple[Photographs, dict[str, str], list[str]]:
    """Opens the images and compares them, and the settings, with those that the run was begun with; writes nothing.

    Args:
      config: Settings, as `RunDirectory.fixed` returns them.
      run: Directory of the run.
      accept: Whether to go on with other images.

    Returns:
      The images, their listing, and what has changed since the run began.

    Raises:
      TrainError: If the images cannot be used, or are others and that is not accepted.
    """
    stored, before = run.stored_config(), run.stored_listing()
    try:
        photographs = Photographs(config.data)
    except StorageError:
        raise
    except DataError as error:
        if stored is None or not run.steps or stored.data.folder == config.data.folder:
            raise
        raise RunError(
            f"{run.path} holds a run of data.folder={stored.data.folder!r}, in whose place {config.data.folder!r} "
            f"cannot be used: {error}; leave --data out to go on, or choose another workdir"
        ) from error
    listing = data_listing(photographs, None if before is None else how_listed(before))
    changes = [*run.check(config), *run.check_data(config, listing, accept=accept)]
    return photographs, listing, changes
