"""`flax-vae encode`: encodes images to latents for the training of diffusion models."""

import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from flax_vae.cli.command import PRESET_HELP, run_command
from flax_vae.errors import UserError
from flax_vae.images import ADDRESSES, FORMATS

if TYPE_CHECKING:  # loads JAX, which --help must not
    from flax_vae.folders import EncodeReport

PROG = "flax-vae encode"
_NONE = "(default: none)"
_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class EncodeFlags:
    """Encodes images into latents, for the training of diffusion models.

    Images keep their size, padded to the model's factor; images of one size are computed together.  DST is written
    shard by shard and read by `flax_vae.convert.latents.LatentDataset`.  If it is interrupted, run the same command
    again to resume; a complete DST stays unchanged.

    On several machines, run the command on a shared folder with --processes and --process (or --distributed).
    """

    source: Annotated[
        Positional[str], arg(metavar="SRC", help=f"Images of any size: {ADDRESSES}.  Image files are {FORMATS}.")
    ]
    destination: Annotated[Positional[Path], arg(metavar="DST")]
    """Folder for the latents."""
    model: Annotated[str, arg(metavar="MODEL")]
    """Weights of any kind: a model folder, a file, a checkpoint, or on the Hugging Face hub
    hf:org/name[/folder or file][@revision]."""
    preset: Annotated[str | None, arg(metavar="P", help=PRESET_HELP, help_behavior_hint=_NONE)] = None
    raw_weights: FlagCreatePairsOff[bool] = False
    """Use the raw weights of a training checkpoint instead of their moving average, if it holds both."""
    store: Literal["mean", "moments", "sample"] = "mean"
    """Scaled mean of the posterior; unscaled mean and logvar; or a scaled sample."""
    seed: Annotated[int, arg(metavar="S")] = 0
    """Sampling seed.  A sample depends only on the seed and the number of the image."""
    flip: FlagCreatePairsOff[bool] = False
    """Encode the mirror image of each image too, as a second entry."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation dtype; parameters and statistics stay float32."""
    store_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the stored latents."""
    batch_size: Annotated[int, arg(metavar="N")] = 16
    """Maximum number of images in a batch, on all devices of a process together."""
    max_pixels: Annotated[int, arg(metavar="N")] = 1 << 21
    """Maximum number of pixels in a batch; the rows of a larger image are split over the devices."""
    shard_size: Annotated[int, arg(metavar="N")] = 1024
    """Maximum number of images per file; an unfinished file is lost when the command is killed."""
    multiple: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the model's factor)")] = None
    """Pad sides to multiples of this number of pixels; fewer sizes need fewer compiled programs."""
    time: Annotated[float | None, arg(metavar="T", help_behavior_hint=_NONE)] = None
    """Time of all images, for models that are conditioned on a time."""
    skip_bad: Annotated[int, arg(metavar="N")] = 0
    """Maximum number of images to skip because they cannot be read; skipped.jsonl lists them."""
    append: FlagCreatePairsOff[bool] = False
    """Encode images that were added to SRC into new shards; existing shards stay unchanged."""
    force: FlagCreatePairsOff[bool] = False
    """Replace the latents in DST, which stay there until the new ones are complete."""
    processes: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 1)")] = None
    """Number of processes that divide the work."""
    process: Annotated[int | None, arg(metavar="I", help_behavior_hint="(default: 0)")] = None
    """Index of this process, from 0."""
    distributed: FlagCreatePairsOff[bool] = False
    """Split the work over the processes of a TPU pod; every process waits for the slowest."""
    compilation_cache: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint=_NONE)] = None
    """Folder for compiled programs, which later starts load instead of compiling."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command; see `flax_vae.cli.command.run_command`."""
    return run_command(PROG, EncodeFlags, _quietly, "resumes after the last complete shard", args)


def _quietly(flags: EncodeFlags) -> int:
    with warnings.catch_warnings():
        # Pillow warns about images that it can read; other images are errors.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return _run(flags)


def _run(flags: EncodeFlags) -> int:
    if (flags.processes is None) != (flags.process is None) or (flags.distributed and flags.processes is not None):
        raise UserError(
            "--processes and --process need each other and exclude --distributed; pass both, or --distributed alone"
        )
    process, processes = flags.process or 0, 1 if flags.processes is None else flags.processes
    # These imports load JAX, so they come after the flags are checked.
    import jax

    from flax_vae.folders import BatchLimits, encode_folder, encoding_of
    from flax_vae.inference import load_model
    from flax_vae.ops import cache_compilations

    if flags.compilation_cache is not None:
        cache_compilations(flags.compilation_cache)
    if flags.distributed:
        jax.distributed.initialize()
        process, processes = jax.process_index(), jax.process_count()
    grouping = BatchLimits(flags.batch_size, flags.max_pixels, flags.shard_size)
    model, params = load_model(flags.model, flags.preset, flags.dtype, raw_weights=flags.raw_weights)
    encoding = encoding_of(
        model,
        params,
        store=flags.store,
        dtype=flags.store_dtype,
        multiple=flags.multiple,
        flip=flags.flip,
        seed=flags.seed if flags.store == "sample" else None,
        time=flags.time,
    )
    report = encode_folder(
        flags.source,
        flags.destination,
        model,
        params,
        encoding,
        grouping,
        skip_bad=flags.skip_bad,
        append=flags.append,
        force=flags.force,
        process=process,
        processes=processes,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    _tell(flags.destination, report)
    if flags.distributed:
        _wait(flags.destination)
    return 0


def _tell(destination: Path, report: "EncodeReport") -> None:
    from flax_vae.convert.console import printable

    if report.images:
        print(
            f"{report.images:,} images in {report.seconds:.1f} s, {report.images / report.seconds:.3g} images/s; "
            f"the devices computed for {report.computing:.1%} of the time"
        )
    if report.damaged:
        print(f"{len(report.damaged):,} shards were damaged and were encoded again: {', '.join(report.damaged[:4])}")
    print(_counted(report.found, report.encoded, report.skipped, report.images))
    if report.missing:
        print(
            f"{report.shards} of {report.shards + report.missing} shards exist; the process that writes the last "
            "one completes the data set"
        )
    else:
        begun = "" if report.images else "already complete; "
        print(f"{begun}{report.entries:,} latents in {printable(destination)}")


def _counted(found: int, encoded: int, skipped: int, now: int) -> str:
    """Returns a line in which the numbers add up.

    Args:
      found: Number of images at the address.
      encoded: Number of images that have latents.
      skipped: Number of images that could not be read.
      now: Number of images encoded by this call.
    """
    parts = [f"{encoded:,} encoded" + (f", {now:,} of them now" if 0 < now < encoded else "")]
    if skipped:
        parts.append(f"{skipped:,} could not be read (skipped.jsonl lists them in the end)")
    if found > encoded + skipped:
        parts.append(f"{found - encoded - skipped:,} to be encoded by other processes")
    return f"{found:,} image{'s' if found > 1 else ''} found: {'; '.join(parts)}"


def _wait(destination: Path) -> None:
    """Waits until the data set is complete, because processes that JAX has joined must end together."""
    from flax_vae.convert.latents import INDEX

    while not (destination / INDEX).exists():
        time.sleep(_POLL_SECONDS)
