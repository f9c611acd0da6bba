"""Runs the commands that process many images."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from flax_vae.convert.architecture import ALL_PRESETS
from flax_vae.convert.console import advise, parse_flags

Flags = TypeVar("Flags")

PRESET_HELP = f"Architecture, if none is stored with the weights: {', '.join(ALL_PRESETS)}."


def run_command(
    prog: str, flags: type[Flags], work: Callable[[Flags], int], advice: str, args: Sequence[str] | None
) -> int:
    """Parses the flags and runs a command.

    Args:
      prog: Name of the command.
      flags: Dataclass of the flags.
      work: Function from the flags to the exit status.
      advice: Text on what the command does when it is run again after an interruption.
      args: Words after the command's name; None takes those of the process.

    Returns:
      Exit status of the work, or 130 after an interrupt.

    Raises:
      UserError, FileError, OSError: For errors that the user can fix, in one sentence.
      SystemExit: 2 for wrong flags, 0 after `--help`.
    """
    advise(prog, f"the same command {advice}")
    return work(parse_flags(flags, prog=prog, args=args))
