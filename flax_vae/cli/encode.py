"""`flax-vae encode`: images to latents for the training of diffusion models."""

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

if TYPE_CHECKING:  # it loads JAX: not for --help
    from flax_vae.folders import EncodeReport

PROG = "flax-vae encode"
_NONE = "(default: none)"
_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class EncodeFlags:
    """Encodes images into latents, for the training of diffusion models.

    Images keep their size, padded to the model's factor; those of one size are computed together.  DST is written shard
    by shard and read by `flax_vae.convert.latents.LatentDataset`.  What was interrupted, by whatever, goes on when the
    same command is given again, and a complete DST is left as it is.

    Several machines: give all the same command on a shared folder, with --processes and --process (or --distributed).
    """

    source: Annotated[
        Positional[str], arg(metavar="SRC", help=f"Images of any size: {ADDRESSES}.  Image files are {FORMATS}.")
    ]
    destination: Annotated[Positional[Path], arg(metavar="DST")]
    """The folder for the latents."""
    model: Annotated[str, arg(metavar="MODEL")]
    """Weights of any kind: a model folder, a file, a checkpoint, hf:org/name on the Hugging Face hub."""
    preset: Annotated[str | None, arg(metavar="P", help=PRESET_HELP, help_behavior_hint=_NONE)] = None
    raw_weights: FlagCreatePairsOff[bool] = False
    """Take the weights of a training checkpoint instead of their moving average, where it holds both."""
    store: Literal["mean", "moments", "sample"] = "mean"
    """The posterior's mean, scaled; mean and logvar, raw; or one sample of it, scaled."""
    seed: Annotated[int, arg(metavar="S")] = 0
    """Sampling seed.  A sample depends only on the seed and the number of the image."""
    flip: FlagCreatePairsOff[bool] = False
    """Encode the mirror image of each too, as a second entry."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation dtype; parameters and statistics stay float32."""
    store_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the stored latents."""
    batch_size: Annotated[int, arg(metavar="N")] = 16
    """Images at a time, on all devices of a process together, where there are so many of one size."""
    max_pixels: Annotated[int, arg(metavar="N")] = 1 << 21
    """Pixels of a batch together; a larger image is spread over the devices by its rows."""
    shard_size: Annotated[int, arg(metavar="N")] = 1024
    """Images in each file, at most; what is lost when the command is killed."""
    multiple: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the model's factor)")] = None
    """Pad sides to multiples of so many pixels: fewer sizes, each of which is a program to compile."""
    time: Annotated[float | None, arg(metavar="T", help_behavior_hint=_NONE)] = None
    """The condition of a model that takes a time."""
    skip_bad: Annotated[int, arg(metavar="N")] = 0
    """Pass over up to so many images that cannot be read; skipped.jsonl lists them."""
    append: FlagCreatePairsOff[bool] = False
    """Encode the images that SRC has gained since, into new shards; those that are there are not touched."""
    force: FlagCreatePairsOff[bool] = False
    """Replace what an earlier encode has written to DST, which stays there until the new latents are complete."""
    processes: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 1)")] = None
    """How many processes share the work; they need not know each other."""
    process: Annotated[int | None, arg(metavar="I", help_behavior_hint="(default: 0)")] = None
    """Which of them this is, from 0."""
    distributed: FlagCreatePairsOff[bool] = False
    """Split the work over the processes of a TPU pod; every process waits for the slowest."""
    compilation_cache: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint=_NONE)] = None
    """Where compiled programs are kept, so that the next start need not compile them."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command; see `flax_vae.cli.command.run_command`."""
    return run_command(PROG, EncodeFlags, _quietly, "goes on after the last whole shard", args)


def _quietly(flags: EncodeFlags) -> int:
    with warnings.catch_warnings():
        # What Pillow puts up with, it remarks on; what it does not is an error of its own.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return _run(flags)


def _run(flags: EncodeFlags) -> int:
    if (flags.processes is None) != (flags.process is None) or (flags.distributed and flags.processes is not None):
        raise UserError("--processes and --process go together, and with --distributed JAX says both; correct that")
    process, processes = flags.process or 0, 1 if flags.processes is None else flags.processes
    # They load JAX: only now, when there is something to compute.
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
    from flax_vae.cli.counts import counted  # loads NumPy
    from flax_vae.convert.console import printable

    if report.images:
        print(
            f"{report.images:,} images in {report.seconds:.1f} s, {report.images / report.seconds:.3g} images/s; "
            f"the devices computed for {report.computing:.1%} of the time"
        )
    if report.damaged:
        print(f"{len(report.damaged):,} shards were damaged and were encoded again: {', '.join(report.damaged[:4])}")
    print(counted(report.found, report.encoded, report.skipped, report.images))
    if report.missing:
        print(
            f"{report.shards} of {report.shards + report.missing} shards are there; the process that writes the last "
            "one completes the data set"
        )
    else:
        begun = "" if report.images else "nothing was left to do; "
        print(f"{begun}{report.entries:,} latents in {printable(destination)}")


def _wait(destination: Path) -> None:
    """Until the data set is complete: processes that JAX has joined must end together."""
    from flax_vae.convert.latents import INDEX

    while not (destination / INDEX).exists():
        time.sleep(_POLL_SECONDS)
