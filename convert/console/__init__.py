"""What the commands of all packages share: interrupts, quiet libraries, text for a terminal.

Imports `convert.extras`; used by every command line.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from convert.console.cpus import available_cpus
    from convert.console.interrupts import advise, run
    from convert.console.progress import Progress
    from convert.console.quiet import quiet_libraries
    from convert.console.terminal import escaped, escaped_output, parse_flags, printable, rewrite_line

__all__ = [
    "Progress",
    "advise",
    "available_cpus",
    "escaped",
    "escaped_output",
    "parse_flags",
    "printable",
    "quiet_libraries",
    "rewrite_line",
    "run",
]
