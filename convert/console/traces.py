"""The command line of `torch_ref.trace` and `flax_vae.trace`, for them and for `flax-vae-convert verify --run`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from flax_vae.convert.console.error_lines import guard
from flax_vae.convert.console.flags import parse_flags
from flax_vae.convert.console.options import NONE, PrefixOption, PresetOption, RawWeightsOption, Section, VariantOption
from flax_vae.convert.console.quiet import quiet_libraries
from flax_vae.convert.console.terminal import escaped_output


@dataclass(frozen=True)
class ReadFlags:
    """What is read from a file or folder of weights."""

    prefix: PrefixOption = None
    variant: VariantOption = None
    raw_weights: RawWeightsOption = False


@dataclass(frozen=True)
class WeightsFlags(ReadFlags):
    """What is read from a file or folder of weights."""

    preset: PresetOption = None


@dataclass(frozen=True)
class TraceFlags:
    """Writes the output of every layer of a model for one image, by the names of the layers in PyTorch's state dict.

    The model computes in float32, and for EXACT in float64.

    Attributes:
      model: File or folder of weights, as the SRC of flax-vae-convert.
      picture: Image to run through the model.
      out: File to write, .npz.
      exact: File to write with the outputs in float64, .npz.
      weights: Options of the weights.
    """

    model: Annotated[Positional[Path], arg(metavar="MODEL")]
    picture: Annotated[Positional[Path], arg(metavar="PICTURE")]
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    exact: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=NONE)] = None
    weights: Section[WeightsFlags] = WeightsFlags()

    def words(self) -> list[str]:
        """Returns the command line that `trace_command` reads back."""
        words = [path if not (path := str(each)).startswith("-") else f"./{path}" for each in self._paths()]
        if self.exact is not None:
            words.append(f"--exact={self.exact}")
        for name in ("preset", "prefix", "variant"):
            if (value := getattr(self.weights, name)) is not None:
                words.append(f"--{name}={value}")
        return words + (["--raw-weights"] if self.weights.raw_weights else [])

    def outputs(self) -> dict[Literal["float32", "float64"], Path]:
        """Returns the files to write by the dtype of their outputs."""
        return {"float32": self.out} if self.exact is None else {"float32": self.out, "float64": self.exact}

    def _paths(self) -> tuple[Path, Path, Path]:
        return self.model, self.picture, self.out


@escaped_output()
def trace_command(module: str, write: Callable[[TraceFlags], None], args: Sequence[str] | None = None) -> int:
    """Runs one of the two modules as a command and returns its exit code.

    Args:
      module: Name of the module, which begins the line of an error on standard error.
      write: Function that runs the model and writes the file.
      args: Arguments after the module's name; None takes those of the process.

    Returns:
      Exit status.
    """
    quiet_libraries()
    flags = parse_flags(TraceFlags, prog=f"python -m {module}", args=args)

    def work() -> int:
        write(flags)
        return 0

    return guard(module, work, words=())
