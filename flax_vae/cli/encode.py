"""`flax-vae encode`: encodes images to latents for the training of diffusion models."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from flax_vae.cli.command import ComputeFlags, TimedModelFlags, run_command
from flax_vae.convert.console import Section
from flax_vae.errors import UserError
from flax_vae.images import ADDRESSES, FORMATS

if TYPE_CHECKING:  # loads JAX, which --help must not
    from flax_vae.folders import EncodeReport

PROG = "flax-vae encode"
_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class LatentFlags:
    """What is stored of each image."""

    store: Literal["mean", "moments", "mean-std", "sample"] = "mean"
    """Scaled mean of the posterior; unscaled mean and logvar; unscaled mean and deviation; or a scaled sample."""
    seed: Annotated[int, arg(metavar="S")] = 0
    """Sampling seed.  A sample depends only on the seed and the number of the image."""
    resize: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: images keep their size)")] = None
    """Resize the shorter side to this number of pixels first, as ADM, DiT, SiT and MeanFlow do: halved by boxes while
    it is twice too large, then bicubic."""
    crop: Annotated[
        Literal["center", "none"] | None, arg(metavar="{center,none}", help_behavior_hint="(default: center)")
    ] = None
    """Encode the N x N square in the centre of a resized image, or all of it."""
    flip: bool = False
    """Encode the mirror image of each image too, as a second entry; mirrored after --crop."""
    multiple: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the model's factor)")] = None
    """Pad sides to multiples of this number of pixels; fewer sizes need fewer compiled programs."""
    store_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the stored latents."""

    def resizing(self) -> dict[str, Any]:
        """Returns the fields of `Encoding` that --resize and --crop name.

        Raises:
          UserError: If --crop is given alone, or --resize is not a length.
        """
        if self.resize is None:
            if self.crop is not None:
                raise UserError(f"--crop {self.crop} needs --resize N, the side of the crop in pixels")
            return {}
        if self.resize < 1:
            raise UserError(f"--resize {self.resize} must be at least 1 pixel")
        return {"resize": self.resize, "crop": self.crop or "center"}


@dataclass(frozen=True)
class ShardFlags:
    """What is written to DST."""

    format: Literal["safetensors", "arrayrecord", "npz", "pt"] = "safetensors"
    """Format of the files: for LatentDataset and flax-vae decode; for grain; for numpy.load; one file per image for
    torch.load, as in the training code of MeanFlow."""
    shard_size: Annotated[int, arg(metavar="N")] = 1024
    """Maximum number of images per file; an unfinished file is lost when the command is killed."""
    skip_bad: Annotated[int, arg(metavar="N")] = 0
    """Maximum number of images to skip because they cannot be read; skipped.jsonl lists them."""
    append: bool = False
    """Encode images that were added to SRC into new shards; existing shards stay unchanged."""
    force: bool = False
    """Replace the latents in DST, which stay there until the new ones are complete."""


@dataclass(frozen=True)
class DivisionFlags:
    """Several machines that write to a shared folder."""

    processes: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 1)")] = None
    """Number of processes that divide the work."""
    process: Annotated[int | None, arg(metavar="I", help_behavior_hint="(default: 0)")] = None
    """Index of this process, from 0."""
    distributed: bool = False
    """Split the work over the processes of a TPU pod; every process waits for the slowest."""


@dataclass(frozen=True)
class EncodeFlags:
    """Encodes images into latents, for the training of diffusion models.

    Images keep their size, or are resized first by --resize, and are padded to the model's factor; images of one size
    are computed together.  DST is written shard by shard and read by `flax_vae.convert.latents.LatentDataset`.  If it
    is interrupted, run the same command again to resume; a complete DST stays unchanged.

    On several machines, run the command on a shared folder with --processes and --process (or --distributed).
    """

    source: Annotated[
        Positional[str], arg(metavar="SRC", help=f"Images of any size: {ADDRESSES}.  Image files are {FORMATS}.")
    ]
    destination: Annotated[Positional[str], arg(metavar="DST")]
    """Folder for the latents, or its address in a bucket, gs://bucket/latents for example."""
    model: Section[TimedModelFlags]
    latents: Section[LatentFlags] = LatentFlags()
    output: Section[ShardFlags] = ShardFlags()
    compute: Section[ComputeFlags] = ComputeFlags()
    distribution: Section[DivisionFlags] = DivisionFlags()


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command; see `flax_vae.cli.command.run_command`."""
    return run_command(PROG, EncodeFlags, _run, "resumes after the last complete shard", args)


def _run(flags: EncodeFlags) -> int:
    latents, output, divided = flags.latents, flags.output, flags.distribution
    if (divided.processes is None) != (divided.process is None) or (
        divided.distributed and divided.processes is not None
    ):
        raise UserError(
            "--processes and --process need each other and exclude --distributed; pass both, or --distributed alone"
        )
    process, processes = divided.process or 0, 1 if divided.processes is None else divided.processes
    resizing = latents.resizing()
    # These imports load JAX, so they come after the flags are checked.
    import jax

    from flax_vae.folders import BatchLimits, encode_folder, encoding_of

    flags.compute.prepare()
    if divided.distributed:
        jax.distributed.initialize()
        process, processes = jax.process_index(), jax.process_count()
    grouping = BatchLimits(flags.compute.batch_size, flags.compute.max_pixels, output.shard_size)
    model, params = flags.model.load()
    encoding = encoding_of(
        model,
        params,
        store=latents.store,
        dtype=latents.store_dtype,
        multiple=latents.multiple,
        flip=latents.flip,
        seed=latents.seed if latents.store == "sample" else None,
        time=flags.model.time,
        **resizing,
    )
    report = encode_folder(
        flags.source,
        flags.destination,
        model,
        params,
        encoding,
        grouping,
        storage=output.format,
        skip_bad=output.skip_bad,
        append=output.append,
        force=output.force,
        process=process,
        processes=processes,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    _tell(flags.destination, report)
    if divided.distributed:
        _wait(flags.destination)
    return 0


def _tell(destination: str, report: "EncodeReport") -> None:
    from flax_vae.convert.console import printable

    if report.images:
        print(
            f"{report.images:,} images in {report.seconds:.1f} s, {report.images / report.seconds:.3g} images/s; "
            f"compiling took {report.compiling:.1f} s, and the devices computed for {report.computing:.1%} of the time"
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


def _wait(destination: str) -> None:
    """Waits until the data set is complete, because processes that JAX has joined must end together."""
    from flax_vae.convert.files import address_below, exists_at
    from flax_vae.convert.latents import INDEX

    while not exists_at(address_below(destination, INDEX)):
        time.sleep(_POLL_SECONDS)
