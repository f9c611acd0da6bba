"""The run directory: config, checkpoints, recovery, a lock against a second trainer, stop requests.

Imports `flax_vae.train.config` and `flax_vae.train.data`; used by the loop and by the commands.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.train.run.checkpoints import Checkpoints
    from flax_vae.train.run.directory import HISTORY, RunDirectory
    from flax_vae.train.run.hold import Hold, hold_directory
    from flax_vae.train.run.images import open_data
    from flax_vae.train.run.lock_file import lock
    from flax_vae.train.run.signals import StopRequest, stop_requests
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Checkpoints",
    "HISTORY",
    "Hold",
    "RunDirectory",
    "StopRequest",
    "hold_directory",
    "lock",
    "open_data",
    "stop_requests",
]
