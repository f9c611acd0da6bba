"""The command line of `torch_ref.trace` and `flax_vae.trace`, for them and for `flax-vae-convert verify --run`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from flax_vae.convert.console.error_lines import guard
from flax_vae.convert.console.flags import parse_flags
from flax_vae.convert.console.quiet import quiet_libraries
from flax_vae.convert.console.terminal import escaped_output


@dataclass(frozen=True)
class TraceFlags:
    """Writes the output of every layer of a model for one image, by the names of the layers in PyTorch's state dict.

    Attributes:
      model: File or folder of weights, as the SRC of flax-vae-convert
      picture: Image to run through the model
      out: File to write, .npz
      preset: Architecture, if no configuration lies beside MODEL
      prefix: Prefix of the autoencoder's names, if MODEL holds several autoencoders
      variant: Variant to read from a diffusers folder that holds several, such as fp16
      raw_weights: Read the raw weights, if MODEL also holds their moving average
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    picture: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    preset: str | None = None
    prefix: str | None = None
    variant: str | None = None
    raw_weights: bool = False

    def words(self) -> list[str]:
        """Returns the command line that `trace_command` reads back."""
        words = [path if not (path := str(each)).startswith("-") else f"./{path}" for each in self._paths()]
        for name in ("preset", "prefix", "variant"):
            if (value := getattr(self, name)) is not None:
                words.append(f"--{name}={value}")
        return words + (["--raw-weights"] if self.raw_weights else [])

    def _paths(self) -> tuple[Path, Path, Path]:
        return self.model, self.picture, self.out


@escaped_output()
def trace_command(module: str, write: Callable[[TraceFlags], None], args: Sequence[str] | None = None) -> int:
    """Runs one of the two modules as a command and returns its exit code.

    Args:
      module: Name of the module, which begins the line of an error on standard error.
      write: Function that runs the model and writes the file.
      args: Arguments after the module's name; None takes those of the process.
    """
    quiet_libraries()
    flags = parse_flags(TraceFlags, prog=f"python -m {module}", args=args, config=(tyro.conf.FlagCreatePairsOff,))

    def work() -> int:
        write(flags)
        return 0

    return guard(module, work, words=())
