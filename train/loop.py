"""The training loop."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from flax_vae import save_pretrained
from flax_vae.autoencoder import Model
from flax_vae.convert.errors import FlaxVaeError
from flax_vae.convert.files import is_address, put_folder, scratch_folder
from flax_vae.convert.weights import CONFIG, read_config
from flax_vae.finite import require_finite
from flax_vae.images import ImageScores
from flax_vae.train.build import load_start, load_start_training, make_components, make_constants, make_state
from flax_vae.train.config import TrainConfig, changes_latents
from flax_vae.train.data import Batches, Photographs, validation_images
from flax_vae.train.devices import (
    Parallel,
    StepOperations,
    agreement,
    facts_of_run,
    facts_of_start,
    gather_values,
    make_parallel,
    mean_operations,
    peak_flops,
    require_same_state,
)
from flax_vae.train.errors import NotFiniteError, RunError
from flax_vae.train.evaluation import LOGGED_AS, MORE_IS_BETTER, BestScore, Validation
from flax_vae.train.losses import Features
from flax_vae.train.plan import require_memory
from flax_vae.train.report import (
    Loggers,
    Metrics,
    Reporter,
    Speed,
    chosen_loggers,
    read_metrics,
    require_loggers,
    save_comparisons,
    write_report,
)
from flax_vae.train.run import (
    Checkpoints,
    Hold,
    RunDirectory,
    StopRequest,
    hold_directory,
    open_data,
    stop_requests,
)
from flax_vae.train.state import TrainState
from flax_vae.train.step import FINITE, Components, Scores, drawn_size, train_step


class Outcome(NamedTuple):
    """Result of a run.

    Attributes:
      state: State after the last update.
      step: Number of updates done.
      scores: `psnr` (decibels), `ssim` and, if they are measured, `lpips` and `rfid` of the validation images or of the
        held-out photograph; empty if the run was stopped, and in all processes but the first.
      stopped_by: Signal that stopped the run, or None.
    """

    state: TrainState
    step: int
    scores: dict[str, float]
    stopped_by: int | None = None


def train(
    config: TrainConfig,
    workdir: Path,
    *,
    accept_changed_data: bool = False,
    take_over: bool = False,
    features: Features | None = None,
) -> Outcome:
    """Trains an autoencoder for `config.steps` updates; resumes from the checkpoints in `workdir`, if there are any.

    A run that was interrupted and resumed ends with the same weights as an uninterrupted one.  SIGTERM, SIGUSR1 and
    Ctrl-C save a checkpoint after the current step and end the run early.  In a run of several processes (see
    `flax_vae.train.devices.processes`) each process calls this function with the same arguments; the first one writes
    metrics, pictures, report and export.

    Args:
      config: Settings of the run.
      workdir: Run directory, also the address of one in a bucket; created if missing, and removed again if the run
        cannot start.
      accept_changed_data: Whether a run may resume with other images than it started with.
      take_over: Whether to take a directory in a bucket over from a trainer that seems to use it.
      features: Network for `loss.features_weight`, from images to a list of feature maps; see
        `flax_vae.train.losses.feature_distance`.  Pass the same one to resume.

    Returns:
      The final state and its scores.

    Raises:
      TrainError: If images, batch size or settings are invalid, the directory holds another run, initial weights or
        images have changed, the disk is full, or too many consecutive updates are not finite.
    """
    run, first = RunDirectory(workdir), jax.process_index() == 0
    made = [] if is_address(run.path) else [folder for folder in (run.path, *run.path.parents) if not folder.exists()]
    try:
        with stop_requests() as stop, contextlib.ExitStack() as stack:
            with agreement() as facts:  # before any operation that waits for another process
                config = run.fixed(config)
                run.check(config)  # before the lock file is created
                hold = stack.enter_context(hold_directory(run.path, take_over=take_over)) if first else Hold()
                setup = _set_up(config, run, accept_changed_data, features)
                facts |= facts_of_run(setup.config, setup.listing, setup.constants)
                facts["validation image"] = setup.validate.facts
            return _train(run, setup, stop, hold)
    except BaseException:
        for folder in made:  # `rmdir` removes empty folders only, so a run that has started stays
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


class _Setup(NamedTuple):
    """Everything that a run uses beside its state.

    Attributes:
      config: Settings, with the name of the held-out image.
      parallel: Devices.
      photographs: Images.
      listing: Content of the images.
      changes: Differences from the settings and images that the run started with.
      components: Model, optimisers and discriminator.
      constants: Constants of the losses.
      validate: Evaluation of the validation images, or of the held-out one.
    """

    config: TrainConfig
    parallel: Parallel
    photographs: Photographs
    listing: dict[str, str]
    changes: list[str]
    components: Components
    constants: dict[str, Any]
    validate: Validation


def _set_up(config: TrainConfig, run: RunDirectory, accept: bool, features: Features | None) -> _Setup:
    require_loggers(config)  # before anything is written
    parallel = make_parallel(config.parallel, zero=config.zero, devices_per_image=config.devices_per_image)
    parallel.check_batch_size(config.batch_size, config.optim.accumulate)
    photographs, listing, changes = open_data(config, run, accept=accept)
    config = replace(config, data=replace(config.data, held_out=photographs.held_out_name))
    components, constants = make_components(config), make_constants(config.loss, features)
    require_memory(config, parallel, constants)
    judging = validation_images(config.validation, config.data)
    start = partial(load_start, config) if _compares_latents(config) else None
    validate = Validation(config, judging, parallel, constants.get("lpips"), start)
    return _Setup(config, parallel, photographs, listing, changes, components, constants, validate)


def _train(run: RunDirectory, setup: _Setup, stop: StopRequest, hold: Hold) -> Outcome:
    first, notes = jax.process_index() == 0, [*hold.notes]
    config, parallel, photographs, listing, changes, components, constants, validate = setup
    metric, patience = config.validation.metric, config.validation.patience
    criterion = LOGGED_AS.get(metric, metric), "max" if MORE_IS_BETTER[metric] else "min"
    with Checkpoints(run.checkpoints, keep=config.keep, best=criterion, require_held=hold.require_held) as checkpoints:
        # Restore the newest checkpoint, or create the initial state.
        start = checkpoints.newest_good() or 0
        if start > config.steps:
            raise RunError(
                f"{run.path} holds {start} steps, more than steps={config.steps}; set steps to {start} or more"
            )
        state = _restore_or_create(checkpoints, start, config, components, parallel, notes)
        best = BestScore.restored(checkpoints.scores(start))
        end = start if best.ended(patience) else config.steps
        constants = parallel.replicate(constants)
        if first:
            run.begin(config, listing, changes)
        metrics = Metrics(run.metrics, start, write=first)

        # Compile the step, and prepare the batches.
        sizes = (None, *config.reduced_sizes)  # of latents; each has a program, which is compiled when it is drawn
        update = partial(train_step, components=components, config=config)
        programs = {size: parallel.compile(partial(update, size=size)) for size in sizes}
        local = parallel.local_slice(config.batch_size)
        batches = Batches(
            photographs, config.seed, start, end, config.batch_size, parallel.place_batch,
            share=slice(local.start, local.stop),
        )  # fmt: skip

        # Train.  Schedule and noise are computed inside the step, so that nothing is transferred implicitly.
        reporter = Reporter(start, config.steps, quiet=not first)
        loggers = Loggers(chosen_loggers(config, run.path, start) if first else {}, reporter.line)
        with reporter, loggers, batches, jax.transfer_guard("disallow"):
            notes = [*checkpoints.problems, *metrics.problems, *photographs.source.notes, *notes]
            if changes:
                notes.append(f"changed since this run began: {', '.join(changes)}")
            _print_header(reporter, config, run, photographs, validate, parallel, state, start, notes)
            reported = _print_skipped(reporter, photographs, 0)
            peak = peak_flops(parallel.devices[0].device_kind)
            speed = Speed(config.batch_size, len(parallel.devices), peak, config.gan.start)
            step, row = start, None  # row: scores of the last evaluation, if it was in this process
            compiled, done = set[int | None](), list[StepOperations | None]()
            for step, batch in enumerate(batches, start=start + 1):
                size = drawn_size(config, step - 1)
                state, scores = programs[size](state, batch, constants)
                done.append(programs[size].operations)
                if size not in compiled:
                    compiled.add(size)
                    jax.block_until_ready(scores)
                    speed.skip(step)
                    done.clear()

                last, stopping, better = step == config.steps, stop.asked(step), False
                log = last or step % config.log_every == 0
                evaluates = last or step % config.eval_every == 0
                save = last or stopping or step % config.save_every == 0
                reporter.advance(step)
                if not (log or evaluates or save):
                    continue

                # Keep this order: scores are checked before the state that they belong to is saved.
                numbers = _to_numbers(scores)  # waits for the update
                speed.add(step)
                _check(numbers, step, config, checkpoints)
                reported = _print_skipped(reporter, photographs, reported)
                if log:
                    reporter.scores(step, numbers, speed.seconds_left(config.steps - step))
                    numbers |= speed.read(mean_operations(done))
                    done.clear()
                if evaluates:
                    row = _evaluate(validate, config, parallel, state, step, run, reporter)
                    numbers |= row
                    before, best = best, best.after(step, row.get(criterion[0]), metric)
                    # The best of a validation set is kept, whenever it comes.
                    better = config.validation.data is not None and best.step != before.step
                    last = last or best.ended(patience)
                if log or evaluates:
                    metrics.write(step, numbers)
                loggers.show(step, numbers, run.sample(step) if evaluates else None)
                if save or last or better:
                    require_same_state(state, step)
                    metrics.flush()
                    checkpoints.save(step, state, config, wait=last or stopping, scores=numbers | best.stored())
                if evaluates or save or better:
                    speed.begin(step)
                if last:
                    break
                if stopping:
                    return Outcome(state, step, {}, stop.signum)

            if step < config.steps:
                reporter.line(
                    f"ended after step {step} of {config.steps}: {patience} evaluations without a better {metric} than "
                    f"that of step {best.step}"
                )
            params = parallel.gather(state.eval_params())
            if row is None:  # nothing was left to train
                row = _final_scores(run, step) or _evaluate(validate, config, parallel, state, step, run, reporter)
        if not first:
            return Outcome(state, step, {})
        if not row:
            raise NotFiniteError(
                f"{run.path}: a {_name_of(config)} reconstruction is not finite after step {step}, so nothing is "
                "exported; start again in another workdir with a lower learning rate"
            )
        _export(run, _with_measured_latents(components.model, run, reporter), params)
        write_report(run.path)
    return Outcome(state, step, _only_scores(row))


def _restore_or_create(
    checkpoints: Checkpoints,
    start: int,
    config: TrainConfig,
    components: Components,
    parallel: Parallel,
    notes: list[str],
) -> TrainState:
    if not start:
        with agreement() as facts:
            beside = load_start_training(config)
            state = make_state(config, components, load_start(config), beside.discriminator, beside.adam)
            facts |= facts_of_start(state)
        notes += beside.notes
        return parallel.place_state(state)
    # Restore to the shardings of the current devices, which may differ from those of the checkpoint.
    shapes = jax.eval_shape(partial(make_state, config, components))
    like = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes, parallel.shardings(shapes),
    )  # fmt: skip
    return checkpoints.restore(start, like)


def _check(numbers: dict[str, float], step: int, config: TrainConfig, checkpoints: Checkpoints) -> None:
    """Ends a run whose updates are no longer finite.

    Raises:
      NotFiniteError: If more consecutive updates than allowed were skipped, or all updates of a run that ends.
    """
    in_a_row = int(numbers["in_a_row"])
    if in_a_row > config.max_skipped:
        bad = [f"{name}={numbers[name]}" for name in FINITE if not math.isfinite(numbers.get(name, 0.0))]
        good = checkpoints.set_aside(step - in_a_row)
        kept = (
            f"the next start resumes after step {good}, the newest checkpoint that was followed by a finite update"
            if good
            else "no earlier checkpoint exists"
        )
        raise NotFiniteError(
            f"{', '.join(bad)} at step {step}, and {in_a_row} consecutive steps skipped, "
            f"more than max_skipped={config.max_skipped}; {kept}. Lower the learning rate or clip_norm, or check the "
            "images"
        )
    if step == config.steps and int(numbers["skipped"]) >= step:
        raise NotFiniteError(
            f"none of {step} updates was finite, so nothing is exported; lower the learning rate or clip_norm, or "
            "check the images"
        )


def _print_header(
    reporter: Reporter,
    config: TrainConfig,
    run: RunDirectory,
    photographs: Photographs,
    validate: Validation,
    parallel: Parallel,
    state: TrainState,
    start: int,
    notes: list[str],
) -> None:
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    judged = f"{photographs.held_out_name} held out"
    if config.validation.data is not None:
        judged = f"{len(validate.sizes):,} of {config.validation.data} for validation"
    count, platform = len(parallel.devices), parallel.devices[0].platform
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    processes += f", {config.devices_per_image} per image" if config.devices_per_image > 1 else ""
    reporter.line(
        f"{run.path}: {weights:,} parameters; {len(photographs.names)} photographs and {judged}; {count} {platform} "
        f"device{'s' if count > 1 else ''}{processes} ({config.parallel})"
    )
    peak = peak_flops(parallel.devices[0].device_kind)
    if peak is not None:
        reporter.line(f"mfu: share of {peak / 1e12:,.0f} TFLOP/s per device, its peak in bfloat16 without sparsity")
    for note in notes:
        reporter.line(note)
    if start == config.steps:
        reporter.line(f"this run is complete: all {start} steps are done")
    elif start:
        reporter.line(f"resumed after step {start} of {config.steps}")


def _print_skipped(reporter: Reporter, photographs: Photographs, reported: int) -> int:
    """Prints the images that were skipped since the first `reported` ones; returns the number of all."""
    problems = photographs.problems
    if len(problems) > reported:
        reporter.line(f"skipped {len(problems)} images that cannot be used; the last ones:")
        for problem in problems[max(reported, len(problems) - _PROBLEMS) :]:
            reporter.line(f"  {problem}")
    return len(problems)


_PROBLEMS = 10  # images printed at a time; all are counted


def _evaluate(
    validate: Validation,
    config: TrainConfig,
    parallel: Parallel,
    state: TrainState,
    step: int,
    run: RunDirectory,
    reporter: Reporter,
) -> dict[str, float]:
    """Evaluates the state and saves a picture; returns no scores if they are not finite.  All processes call it."""
    try:
        validated = validate(parallel.gather(state.eval_params()))
        raw = validate(parallel.gather(state.params)).scores if config.validation.raw else {}
    except NotFiniteError as error:
        reporter.line(f"step {step}: {error}")
        return {}
    if jax.process_index() == 0:
        save_comparisons(run.sample(step), validated.shown)
    reporter.line(f"step {step}: {_name_of(config)} {describe_scores(validated.scores)}")
    change = validated.change
    if change is not None:
        reporter.line(f"step {step}: {_name_of(config)} {change.in_words()}")
    elif config.start_from is not None:
        reporter.line(f"step {step}: latents as at the start, because the encoder is not trained")
    if raw:
        reporter.line(f"step {step}: {_name_of(config)} {describe_scores(raw)}, by the raw weights")
    scores = {LOGGED_AS.get(name, name): score for name, score in validated.scores.items()}
    scores |= {f"latent_{name}": value for name, value in (change._asdict() if change else {}).items()}
    return scores | {f"raw_{name}": score for name, score in raw.items()}


def _compares_latents(config: TrainConfig) -> bool:
    """Returns whether a run started from a model whose latents it can change."""
    return config.start_from is not None and changes_latents(config.trained)


def _name_of(config: TrainConfig) -> str:
    return "held-out" if config.validation.data is None else "validation"


def describe_scores(scores: dict[str, float]) -> str:
    """Returns the scores of an evaluation in one phrase."""
    image = ImageScores("", 0, 0, scores["psnr"], scores.get("ssim"), scores.get("lpips"))
    return ", ".join([*image.in_words(), *([f"rFID {scores['rfid']:.4f}"] if "rfid" in scores else [])])


def _final_scores(run: RunDirectory, step: int) -> dict[str, float] | None:
    """Returns the logged scores of the last step, if it was evaluated, as the first process read them."""
    rows = []
    if jax.process_index() == 0:
        rows = [row for row in read_metrics(run.metrics) if row["step"] == step and isinstance(row.get("psnr"), float)]
    if jax.process_count() > 1:
        rows = gather_values(rows)[0]
    return rows[-1] if rows else None


def _only_scores(row: Mapping[str, float]) -> dict[str, float]:
    """Returns the scores of an evaluation, by their own names."""
    logged = {name: LOGGED_AS.get(name, name) for name in MORE_IS_BETTER}
    return {name: row[there] for name, there in logged.items() if there in row}


def _with_measured_latents(model: Model, run: RunDirectory, reporter: Reporter) -> Model:
    """Returns the model with the scale, shift and statistics that were written into an earlier export of this run."""
    try:
        stored = read_config(run.export / CONFIG)
    except (FlaxVaeError, OSError):
        return model
    names = ("scale_factor", "shift_factor", "latent_mean", "latent_std")
    measured = {name: getattr(stored, name) for name in names if hasattr(stored, name)}
    if stored == model.params or stored != replace(model.params, **measured):
        return model
    reporter.line(f"{run.export}: scale, shift and statistics of the latents stay as they were written there")
    return model.clone(params=stored)


def _export(run: RunDirectory, model: Model, params: dict[str, Any]) -> None:
    """Writes the model folder; replaces one from an earlier end of the run, when `steps` was smaller."""
    require_finite(params, f"the model of {run.path}")
    try:
        if not is_address(run.export):
            save_pretrained(run.export, model, params, force=True)
            return
        with scratch_folder() as scratch:
            save_pretrained(scratch / run.export.name, model, params)
            put_folder(scratch / run.export.name, run.export)
    except OSError as error:
        raise RunError(f"{run.export} cannot be written ({error}); correct that, then start again") from error


def _to_numbers(scores: Scores) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(scores).items()}
