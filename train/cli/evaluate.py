"""`flax-vae-train eval`: scores of a model on images, statistics of its latents, and its worst cases."""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from flax_vae.convert.console import (
    NONE,
    CacheOption,
    PresetOption,
    Progress,
    RawWeightsOption,
    Section,
    escaped_output,
    guard,
    parse_flags,
)
from flax_vae.images import ADDRESSES
from flax_vae.train.cli.together import DistributionFlags, end, is_joined, join
from flax_vae.train.errors import RunError, TrainError

if TYPE_CHECKING:  # they load JAX: not for --help
    import numpy as np

    from flax_vae.autoencoder import Model
    from flax_vae.images import Comparison, ImageSource
    from flax_vae.train.config import TrainConfig, ValidationConfig
    from flax_vae.train.evaluation import Evaluation, FrechetMeter, PerceptualDistance

PROG = "flax-vae-train eval"


@dataclass(frozen=True)
class MeasuredModelFlags:
    """How the models are read and run."""

    preset: PresetOption = None
    raw_weights: RawWeightsOption = False
    time: Annotated[float | None, arg(metavar="T", help_behavior_hint="(default: that of the run, elsewhere 0)")] = None
    """Time for a model that is conditioned on time."""
    bands: bool = False
    """Decode band by band, which is slower, for images that do not fit into the device's memory."""
    compilation_cache: CacheOption = None


@dataclass(frozen=True)
class ImageFlags:
    """What is measured."""

    data: Annotated[
        str | None,
        arg(
            metavar="DATA",
            help=f"Images of any size: {ADDRESSES}.",
            help_behavior_hint="(default: the validation images of the run, or the image that it held out)",
        ),
    ] = None
    resize: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: images keep their size)")] = None
    """Resize the shorter side to this number of pixels first, as `flax-vae encode` does."""
    crop: Annotated[
        Literal["center", "none"] | None, arg(metavar="{center,none}", help_behavior_hint="(default: center)")
    ] = None
    """Measure the N x N square in the centre of a resized image, or all of it."""
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Number of images, the first ones."""
    batch_size: Annotated[
        int | None, arg(metavar="N", aliases=("--batch",), help_behavior_hint="(default: that of the run, elsewhere 8)")
    ] = None
    """Largest number of images of one size that a device computes together."""


@dataclass(frozen=True)
class ScoreFlags:
    """Scores beside PSNR and SSIM."""

    lpips: Annotated[
        Literal["alex", "vgg", "none"] | None,
        arg(metavar="{alex,vgg,none}", help_behavior_hint="(default: that of the run, elsewhere alex)"),
    ] = None
    """Network of LPIPS; papers report alex."""
    lpips_weights: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: the extra lpips)")] = None
    """Weights of LPIPS: a state dict of PyTorch's lpips.LPIPS."""
    equivariance: Annotated[int, arg(metavar="N")] = 8
    """Number of images, the first ones, to measure equivariance to scale and quarter turns on, in a square of at most
    256 x 256 pixels; 0 measures none."""
    features: Annotated[
        str | None, arg(metavar="MODULE:FUNCTION", help_behavior_hint="(default: that of the run, elsewhere no rFID)")
    ] = None
    """Measure rFID with this function from 8-bit images (b, h, w, 3) to features (b, d), such as Inception's."""


@dataclass(frozen=True)
class ResultFlags:
    """What is written beside the printed table."""

    grid: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=NONE)] = None
    """PNG file to write the worst cases to: original, reconstruction, difference."""
    worst: Annotated[int, arg(metavar="N")] = 8
    """Number of worst cases, and of images in --components."""
    worst_by: Literal["psnr", "ssim", "lpips"] = "psnr"
    """Score by which cases are ranked."""
    components: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=NONE)] = None
    """PNG file to write the first images to, beside the first three principal components of their latents as red, green
    and blue."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=NONE)] = None
    """JSON file to write all numbers to."""
    write_scale: bool = False
    """Write the scale and shift that bring latents to mean 0 and deviation 1 into the model folder's config.json."""
    write_statistics: bool = False
    """Write mean and deviation of each channel of the latents into the config.json of a model folder, of this package
    or of diffusers (latents_mean, latents_std)."""


@dataclass(frozen=True)
class DividedFlags(DistributionFlags):
    """Several processes that divide the images; the first prints and writes the results."""


@dataclass(frozen=True)
class EvalFlags:
    """Measures reconstructions: PSNR, SSIM and LPIPS of every image, and rFID; and latents: statistics, KL, spectrum.

    Reconstructs every image whole, from the mode of its posterior, and compares 8-bit images.  Images of more than 32
    sizes are padded to as many.
    """

    models: Annotated[
        Positional[tuple[Path, ...]],
        arg(
            metavar="RUN_OR_MODEL...",
            help="Run directories, of which the export is measured, or weights of any kind: a model folder, a file, a "
            "checkpoint, or on the Hugging Face hub hf:org/name[/folder or file][@revision].  Several models are "
            "compared, one per line.",
            help_behavior_hint="(required)",
        ),
    ]
    model: Section[MeasuredModelFlags] = MeasuredModelFlags()
    images: Section[ImageFlags] = ImageFlags()
    scores: Section[ScoreFlags] = ScoreFlags()
    output: Section[ResultFlags] = ResultFlags()
    distribution: Section[DividedFlags] = DividedFlags()


@escaped_output()
def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
      Exit code: 0, or 1 for an error that the user can fix.
    """
    flags = parse_flags(EvalFlags, prog=PROG, args=args)
    try:
        status = guard(PROG, lambda: _run(flags))
    except Exception:
        if not is_joined(flags.distribution):
            raise
        traceback.print_exc()
        status = 1  # the others wait for this process
    return end(status, flags.distribution)


def locate_model(path: Path) -> Path:
    """Returns the export of a run directory, a temporary copy of what lies in a bucket, and any other path as it is.

    Raises:
      RunError: If the run has not ended.
    """
    from flax_vae.convert.errors import FileError  # numpy, which --help does without
    from flax_vae.convert.files import is_address
    from flax_vae.convert.weights import find_export, is_run, local_weights

    try:
        if is_address(path):
            with local_weights(path) as copy:
                return find_export(copy) if is_run(copy) else copy
        return find_export(path) if is_run(path) else path
    except FileError as error:
        raise RunError(str(error)) from error


def _run(flags: EvalFlags) -> int:
    from flax_vae.convert.files import is_address

    images, output = flags.images, flags.output
    if flags.scores.equivariance < 0:
        raise TrainError(f"equivariance={flags.scores.equivariance} must be at least 0")
    for name, value in [("limit", images.limit), ("batch_size", images.batch_size), ("worst", output.worst)]:
        if value is not None and value < 1:
            raise TrainError(f"{name}={value} must be at least 1")
    if not flags.models:
        raise TrainError("no model; pass run directories or models")
    given = {
        "--features": flags.scores.features, "--grid": output.grid, "--components": output.components,
        "--json": output.json,
        "--write-scale": output.write_scale, "--write-statistics": output.write_statistics,
    }  # fmt: skip
    alone = [name for name, value in given.items() if value]
    if len(flags.models) > 1 and alone:
        raise TrainError(f"{alone[0]} needs exactly one model, not {len(flags.models)}")
    models = tuple(flags.models)
    if output.write_scale and output.write_statistics:
        raise TrainError("--write-statistics replaces scale and shift; leave out --write-scale, or --write-statistics")
    writing = [name for name in alone if name.startswith("--write")]
    if writing and is_address(models[0]):
        raise TrainError(f"{writing[0]} writes into a model folder on this machine, and not into {models[0]}")
    pictures = [name for name in alone if name in ("--grid", "--components")]
    if pictures and is_joined(flags.distribution):
        raise TrainError(f"{pictures[0]} draws images of one process; run it without --processes and --distributed")
    with join(flags.distribution) as facts:
        prepared = _prepare(flags, writing)
        if is_joined(flags.distribution):
            source = prepared.source
            facts["image"] = {str(index): source.printable_name(index) for index in range(len(source))}
            facts |= _facts(flags, prepared)
    return _one(flags, prepared) if len(models) == 1 else _several(flags, prepared)


@dataclass(frozen=True)
class _Prepared:
    """What is measured, and with what.

    Attributes:
      folders: Folders or files of the models.
      loaded: Models and their parameters.
      settings: Settings of the evaluation.
      source: Images.
      perceptual: LPIPS, or None.
      lpips_missing: Why there is no LPIPS, in a few words.
      meter: Meter for rFID, or None.
    """

    folders: "list[Path]"
    loaded: "list[tuple[Model, Any]]"
    settings: "ValidationConfig"
    source: "ImageSource"
    perceptual: "PerceptualDistance | None"
    lpips_missing: str
    meter: "FrechetMeter | None"


def _prepare(flags: EvalFlags, writing: Sequence[str]) -> _Prepared:
    """Loads everything, so that errors come before the first image takes its time."""
    models = flags.models
    folders = [locate_model(path) for path in models]
    if writing:
        from flax_vae.train.evaluation import check_normalisable, check_scalable

        (check_scalable if flags.output.write_scale else check_normalisable)(folders[0])
    # JAX and Pillow: only now, when there is something to compute.
    from flax_vae.inference import load_model
    from flax_vae.ops import cache_for_command
    from flax_vae.train.evaluation import FrechetMeter, load_extractor

    cache_for_command(flags.model.compilation_cache)
    settings, source = _images(flags, models[0])
    for note in source.notes:
        print(note, file=sys.stderr)
    perceptual, lpips_missing = _load_lpips(settings)
    if perceptual is None and flags.output.worst_by == "lpips":
        raise TrainError(f"worst_by=lpips needs LPIPS: {lpips_missing}")
    meter = None if settings.features is None else FrechetMeter(load_extractor(settings.features))
    load = partial(
        load_model, preset=flags.model.preset, dtype="float32", raw_weights=flags.model.raw_weights, rgb=True
    )
    loaded = [load(str(folder)) for folder in folders]
    return _Prepared(folders, loaded, settings, source, perceptual, lpips_missing, meter)


def _facts(flags: EvalFlags, prepared: _Prepared) -> dict[str, Mapping[str, Any]]:
    """Returns settings and weights, which must be equal in all processes."""
    from flax_vae.train.devices import facts_of_models

    settings = asdict(prepared.settings)
    for address in ("data", "lpips_weights"):  # files may have other places on other machines
        del settings[address]
    model = {name: getattr(flags.model, name) for name in ("preset", "raw_weights", "time", "bands")}
    return facts_of_models(
        settings | model | {"equivariance": flags.scores.equivariance}, [params for _, params in prepared.loaded]
    )


@contextmanager
def _shown_progress(flags: EvalFlags, count: int) -> Iterator[Callable[[], None]]:
    """Yields a function that counts an image; several processes show nothing, because each counts only its own."""
    if is_joined(flags.distribution):
        yield lambda: None
        return
    with Progress(count) as progress:
        yield lambda: progress.add(1)


def _several(flags: EvalFlags, prepared: _Prepared) -> int:
    """Compares models, one per line."""
    import jax

    from flax_vae.train.evaluation import comparison

    models, settings, source, count = flags.models, prepared.settings, prepared.source, len(prepared.source)
    evaluations = [
        _evaluation(flags, settings, run, *model, perceptual=prepared.perceptual)
        for run, model in zip(models, prepared.loaded, strict=True)
    ]
    with _shown_progress(flags, len(models) * count) as add:
        reports = [evaluation(source, count, lambda _: add()) for evaluation in evaluations]
    if jax.process_index():
        return 0
    print("\n".join(comparison(dict(zip(map(str, models), reports, strict=True)))))
    print(
        f"{count} image{'s' if count > 1 else ''} of {source.where}; LPIPS: {prepared.lpips_missing or settings.lpips}"
    )
    return 0


def _one(flags: EvalFlags, prepared: _Prepared) -> int:
    """Measures one model in detail."""
    import jax

    from flax_vae.train.evaluation import (
        badness,
        equivariance_line,
        latent_lines,
        rfid_line,
        table,
        write_report_json,
        write_scale,
        write_statistics,
    )
    from flax_vae.train.report import save_comparisons, save_components

    settings, source, perceptual, meter = prepared.settings, prepared.source, prepared.perceptual, prepared.meter
    (where,), ((model, params),) = prepared.folders, prepared.loaded
    meters = {"perceptual": perceptual, "frechet": meter, "equivariance": flags.scores.equivariance}
    evaluate = _evaluation(flags, settings, flags.models[0], model, params, **meters)
    worst: list[Comparison] = []
    first: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def look(comparison: "Comparison") -> None:
        add()
        if flags.output.grid:
            worst.append(comparison)
            worst.sort(key=lambda seen: badness(seen.scores, flags.output.worst_by))
            del worst[flags.output.worst :]

    def look_at_latents(index: int, image: "np.ndarray", latents: "np.ndarray") -> None:
        if flags.output.components and index < flags.output.worst:
            first[index] = (image, latents.copy())

    with _shown_progress(flags, len(source)) as add:
        report = evaluate(source, len(source), look, look_at_latents)
    if jax.process_index():
        return 0

    print("\n".join([*table(report, flags.output.worst_by), "", *latent_lines(report.latents, model.params)]))
    print(f"LPIPS: {prepared.lpips_missing or settings.lpips}")
    print(f"rFID: {rfid_line(report, meter)}")
    print(f"equivariance: {equivariance_line(report)}")
    if flags.output.grid:
        save_comparisons(flags.output.grid, worst)
        print(f"the {len(worst)} worst by {flags.output.worst_by.upper()}: {flags.output.grid}")
    if flags.output.components and report.components is not None:
        draw, share = report.components.draw, report.components.share
        rows = [(source.printable_name(index), first[index][0], draw(first[index][1])) for index in sorted(first)]
        save_components(flags.output.components, rows)
        print(f"latents in colours, {share:.0%} of their variance: {flags.output.components}")
    if flags.output.write_scale:
        scaled = write_scale(where, report.latents)
        print(f"{where / 'config.json'}: scale_factor {scaled.scale_factor}, shift_factor {scaled.shift_factor}")
    if flags.output.write_statistics:
        written = write_statistics(where, report.latents)
        print(f"{where / 'config.json'}: mean and deviation of {written.z_channels} channels")
    if flags.output.json:
        net = None if perceptual is None else settings.lpips
        write_report_json(flags.output.json, {"model": str(where), "data": source.where, "lpips_net": net}, report)
    return 0


def _evaluation(
    flags: EvalFlags, settings: "ValidationConfig", run: Path, model: "Model", params: Any, **meters: Any
) -> "Evaluation":
    import jax

    from flax_vae.train.evaluation import Evaluation

    time = flags.model.time
    if time is None:
        config = _run_config(run)
        time = config.time.evaluate_at if config else 0.0
    devices = tuple(jax.local_devices())
    return Evaluation(model, params, settings.batch_size, time, flags.model.bands or None, devices=devices, **meters)


def _images(flags: EvalFlags, run: Path) -> "tuple[ValidationConfig, ImageSource]":
    """Returns settings and images: those that the run was validated with, except for what flags say."""
    from flax_vae.train.config import DataConfig, ValidationConfig
    from flax_vae.train.data import validation_images

    images, weights = flags.images, flags.scores.lpips_weights
    flagged: dict[str, Any] = {
        "resize": images.resize, "crop": images.crop, "batch_size": images.batch_size, "lpips": flags.scores.lpips,
        "features": flags.scores.features, "lpips_weights": None if weights is None else str(weights),
    }  # fmt: skip
    given = {name: value for name, value in flagged.items() if value is not None}
    if images.crop is not None and images.resize is None:
        raise TrainError(f"--crop {images.crop} needs --resize N, the side of the crop in pixels")
    if images.data is not None:
        settings = ValidationConfig(data=images.data, images=images.limit, **given)
        return settings, validation_images(settings, DataConfig())
    config = _run_config(run)
    if config is None:
        raise TrainError(
            f"{run} is not in a run directory, which would say what was held out; name the images with --data"
        )
    for name in ("resize", "features"):
        if config.validation.data is None and name in given:
            raise TrainError(f"--{name} {given[name]} needs images; {run} held out a single one: name some with --data")
    settings = replace(config.validation, **given)
    if images.limit is not None and settings.data is not None:
        settings = replace(settings, images=min(images.limit, settings.images or images.limit))
    return settings, validation_images(settings, config.data)


def _run_config(path: Path) -> "TrainConfig | None":
    """Returns the settings of the run that a path belongs to: its directory, its export or one of its checkpoints."""
    from flax_vae.convert.files import as_path, exists_at
    from flax_vae.convert.weights import CHECKPOINTS, EXPORT
    from flax_vae.train.run import RunDirectory

    path = run = as_path(path)
    if path.parent.name == CHECKPOINTS:
        run = path.parents[1]
    elif path.name == EXPORT:
        run = path.parent
    return RunDirectory(run).stored_config() if exists_at(run / CHECKPOINTS) else None


def _load_lpips(settings: "ValidationConfig") -> "tuple[PerceptualDistance | None, str]":
    """Returns the distance, or None and the reason in a few words."""
    if settings.lpips == "none":
        return None, "not asked for"
    from flax_vae.train.evaluation import perceptual_distance
    from flax_vae.train.losses import load_lpips_weights

    try:
        weights = load_lpips_weights(settings.lpips, settings.lpips_weights)
    except TrainError as error:
        if settings.lpips_weights is not None:
            raise
        return None, str(error)
    return perceptual_distance(weights, settings.lpips), ""


if __name__ == "__main__":
    sys.exit(main())
