"""What the commands that work through many images have in common."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from flax_vae.convert.architecture import PRESETS
from flax_vae.convert.console import advise, parse_flags

Flags = TypeVar("Flags")

PRESET_HELP = f"Architecture, if none is stored with the weights: {', '.join(PRESETS)}."


def run_command(
    prog: str, flags: type[Flags], work: Callable[[Flags], int], advice: str, args: Sequence[str] | None
) -> int:
    """Reads the flags and does the work.

    Args:
      prog: Command as it is typed.
      flags: Dataclass of the flags.
      work: Function from the flags to the exit status.
      advice: Words on what the command does when it is given again after an interruption.
      args: Words after the command's name; None takes those of the process.

    Returns:
      The exit status: that of the work, or 130 when interrupted.

    Raises:
      UserError, FileError, OSError: one sentence, for what the caller can put right.
      SystemExit: 2 for wrong flags, 0 after `--help`.
    """
    advise(prog, f"the same command {advice}")
    return work(parse_flags(flags, prog=prog, args=args))
