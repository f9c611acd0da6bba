"""What the commands of all packages share: interrupts, quiet libraries, text for a terminal.

Imports `flax_vae.convert.errors`, `extras` and `architecture`; used by every command line.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.convert.console.cpus import available_cpus
    from flax_vae.convert.console.error_lines import guard
    from flax_vae.convert.console.flags import parse_flags
    from flax_vae.convert.console.interrupts import advise, ended_with_this_process, run
    from flax_vae.convert.console.options import (
        NONE,
        OFF,
        CacheOption,
        Preset,
        PresetOption,
        RawWeightsOption,
        Section,
    )
    from flax_vae.convert.console.progress import Progress
    from flax_vae.convert.console.quiet import quiet_libraries
    from flax_vae.convert.console.terminal import escaped_output, printable
    from flax_vae.convert.console.traces import ReadFlags, TraceFlags, WeightsFlags, trace_command
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "NONE",
    "OFF",
    "CacheOption",
    "Preset",
    "PresetOption",
    "Progress",
    "RawWeightsOption",
    "ReadFlags",
    "Section",
    "TraceFlags",
    "WeightsFlags",
    "advise",
    "available_cpus",
    "ended_with_this_process",
    "escaped_output",
    "guard",
    "parse_flags",
    "printable",
    "quiet_libraries",
    "run",
    "trace_command",
]
