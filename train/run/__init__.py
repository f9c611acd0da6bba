"""The run directory: config, checkpoints, the newest intact one, one trainer at a time, requests to stop.

Imports `train.config` and `train.data`; used by the loop and by the commands.
"""

from typing import TYPE_CHECKING

from convert.faces import lazy_names

if TYPE_CHECKING:
    from train.run.checkpoints import Checkpoints
    from train.run.directory import HISTORY, RunDirectory
    from train.run.images import open_data
    from train.run.lock_file import lock
    from train.run.signals import StopRequest, stop_requests
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["Checkpoints", "HISTORY", "RunDirectory", "StopRequest", "lock", "open_data", "stop_requests"]
