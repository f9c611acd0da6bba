"""What the commands share: sections of flags, and the way they run."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from tyro.conf import arg

from flax_vae.convert.console import NONE, CacheOption, PresetOption, RawWeightsOption, advise, parse_flags

if TYPE_CHECKING:  # loads JAX, which --help must not
    from flax_vae.autoencoder import Model

Flags = TypeVar("Flags")


@dataclass(frozen=True)
class ModelFlags:
    """The autoencoder."""

    model: Annotated[str, arg(metavar="MODEL")]
    """Weights of any kind: a model folder, a file, a checkpoint, or on the Hugging Face hub
    hf:org/name[/folder or file][@revision]."""
    preset: PresetOption = None
    raw_weights: RawWeightsOption = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation dtype; parameters and statistics stay float32."""

    def load(self, *, rgb: bool = False) -> "tuple[Model, dict[str, Any]]":
        """Loads the model; see `flax_vae.inference.load_model`."""
        from flax_vae.inference import load_model

        return load_model(self.model, self.preset, self.dtype, raw_weights=self.raw_weights, rgb=rgb)


@dataclass(frozen=True)
class TimedModelFlags(ModelFlags):
    """The autoencoder, and the time that it is conditioned on."""

    time: Annotated[float | None, arg(metavar="T", help_behavior_hint=NONE)] = None
    """Time of all images, for models that are conditioned on a time."""


@dataclass(frozen=True)
class CacheFlags:
    """Compiled programs."""

    compilation_cache: CacheOption = None

    def prepare(self) -> None:
        """Chooses where compiled programs are stored; see `flax_vae.ops.cache_for_command`."""
        from flax_vae.ops import cache_for_command

        cache_for_command(self.compilation_cache)


@dataclass(frozen=True)
class ComputeFlags(CacheFlags):
    """Memory and speed."""

    batch_size: Annotated[int, arg(metavar="N")] = 16
    """Maximum number of images in a batch, on all devices of a process together."""
    max_pixels: Annotated[int, arg(metavar="N")] = 1 << 21
    """Maximum number of pixels in a batch; a larger image is computed in parts."""


def run_command(
    prog: str, flags: type[Flags], work: Callable[[Flags], int], advice: str, args: Sequence[str] | None
) -> int:
    """Parses the flags and runs a command, without warnings of Pillow about images that it can read.

    Args:
      prog: Name of the command.
      flags: Dataclass of the flags.
      work: Function from the flags to the exit status.
      advice: Text on what the command does when it is run again after an interruption, or an empty text.
      args: Words after the command's name; None takes those of the process.

    Returns:
      Exit status of the work, or 130 after an interrupt.

    Raises:
      UserError, FileError, OSError: For errors that the user can fix, in one sentence.
      SystemExit: 2 for wrong flags, 0 after `--help`.
    """
    advise(prog, f"the same command {advice}" if advice else "")
    parsed = parse_flags(flags, prog=prog, args=args)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # images that it cannot read are errors
        return work(parsed)
