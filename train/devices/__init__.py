"""Runs one pure step on all devices of all processes; counts its operations, and lists the peaks of accelerators.

Imports `flax_vae.train.state`; used by the loop and by the plan.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.train.devices.agreeing import (
        agreement,
        facts_of_models,
        facts_of_run,
        facts_of_start,
        gather_float64,
        gather_values,
        require_same_state,
    )
    from flax_vae.train.devices.chips import Chip, find_chip, peak_flops
    from flax_vae.train.devices.compiled_step import StepOperations, mean_operations
    from flax_vae.train.devices.parallel import Parallel, make_parallel
    from flax_vae.train.devices.processes import join_processes, leave
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Chip",
    "Parallel",
    "StepOperations",
    "agreement",
    "facts_of_models",
    "facts_of_run",
    "facts_of_start",
    "find_chip",
    "gather_float64",
    "gather_values",
    "join_processes",
    "leave",
    "make_parallel",
    "mean_operations",
    "peak_flops",
    "require_same_state",
]
