"""Estimates the memory, time and cost of a run: a dry run here, or the step compiled for other devices.

Imports `flax_vae.train.build` and `flax_vae.train.devices`; used by the commands.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.train.plan.compile import find_fitting, fitting, plan
    from flax_vae.train.plan.dry_run import describe_run
    from flax_vae.train.plan.estimate import require_memory
    from flax_vae.train.plan.table import LEGEND, rows
    from flax_vae.train.plan.topologies import Target, local, topology
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "LEGEND",
    "Target",
    "describe_run",
    "find_fitting",
    "fitting",
    "local",
    "plan",
    "require_memory",
    "rows",
    "topology",
]
