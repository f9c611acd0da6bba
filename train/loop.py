"""The story of a run."""

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from flax_vae import AutoEncoder, save_pretrained
from flax_vae.finite import require_finite
from flax_vae.images import ImageScores
from flax_vae.train.build import load_start, make_constants, make_parts, make_state
from flax_vae.train.config import TrainConfig
from flax_vae.train.data import Batches, Photographs
from flax_vae.train.devices import (
    Parallel,
    agreement,
    facts_of_run,
    facts_of_start,
    make_parallel,
    peak_flops,
    require_same_state,
)
from flax_vae.train.errors import NotFiniteError, RunError
from flax_vae.train.evaluation import HeldOutEvaluation
from flax_vae.train.report import (
    Metrics,
    Reporter,
    TensorBoard,
    load_writer,
    read_metrics,
    save_comparisons,
    write_report,
)
from flax_vae.train.run import Checkpoints, RunDirectory, StopRequest, lock, open_data, stop_requests
from flax_vae.train.state import TrainState
from flax_vae.train.step import FINITE, Components, Scores, train_step


class Outcome(NamedTuple):
    """What a run came to.

    Attributes:
      state: after the last update.
      step: updates done.
      scores: `psnr` (decibels), `ssim` and, where it is part of the loss, `lpips` on the held-out photograph; empty
        where the run was stopped, and in all processes but the first.
      stopped_by: the signal that stopped it, or None.
    """

    state: TrainState
    step: int
    scores: dict[str, float]
    stopped_by: int | None = None


def train(config: TrainConfig, workdir: Path, *, accept_changed_data: bool = False) -> Outcome:
    """Trains an autoencoder until `config.steps` updates are done; resumes by itself from `workdir`.

    A run that was interrupted, however that happened, ends with the same weights as one that was not.  SIGTERM,
    SIGUSR1 and Ctrl-C save a checkpoint after the current step and end the run early.  In a run of several processes
    (see `flax_vae.train.devices.processes`) each calls this with the same arguments; the first one writes what people
    read.

    Args:
      config: the run.
      workdir: its directory; made if missing, and removed again if the run is refused.
      accept_changed_data: Whether a run that was begun goes on with other images than it began with.

    Returns:
      The final state and its scores.

    Raises:
      TrainError: for whatever the caller can put right: photographs, batch size, a directory that holds another run,
        a run that was begun with other weights or images, a full disk, updates that are not finite, one after another.
    """
    run, first = RunDirectory(workdir), jax.process_index() == 0
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        with stop_requests() as stop, contextlib.ExitStack() as stack:
            with agreement() as facts:  # before anything that waits for another process
                config = run.fixed(config)
                run.check(config)  # before a lock is left in somebody's directory
                warning = stack.enter_context(lock(run.path)) if first else None
                cast = _gather_cast(config, run, accept_changed_data)
                facts |= facts_of_run(cast.config, cast.listing, cast.constants)
            return _train(run, cast, stop, [warning] if warning else [])
    except BaseException:
        for folder in made:  # only while they are empty: a run that has begun stays
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


class _Cast(NamedTuple):
    """What takes part in a run beside its state.

    Attributes:
      config: Settings, with the held-out image by its name.
      listing: Content of the images.
      changes: What differs from the settings and images that the run was begun with.
    """

    config: TrainConfig
    parallel: Parallel
    photographs: Photographs
    listing: dict[str, str]
    changes: list[str]
    parts: Components
    constants: dict[str, Any]
    evaluate: HeldOutEvaluation


def _gather_cast(config: TrainConfig, run: RunDirectory, accept: bool) -> _Cast:
    if config.tensorboard:
        load_writer()  # before anything is written
    parallel = make_parallel(config.parallel, zero=config.zero, devices_per_image=config.devices_per_image)
    parallel.check_batch_size(config.batch_size, config.optim.accumulate)
    photographs, listing, changes = open_data(config, run, accept=accept)
    config = replace(config, data=replace(config.data, held_out=photographs.held_out_name))
    parts, constants = make_parts(config), make_constants(config)
    evaluate = HeldOutEvaluation(
        config, photographs.held_out_source(), parallel.local_devices[0], constants.get("lpips")
    )
    return _Cast(config, parallel, photographs, listing, changes, parts, constants, evaluate)


def _train(run: RunDirectory, cast: _Cast, stop: StopRequest, notes: list[str]) -> Outcome:
    first = jax.process_index() == 0
    config, parallel, photographs, listing, changes, parts, constants, evaluate = cast
    with Checkpoints(run.checkpoints, keep=config.keep, best=("psnr", "max")) as checkpoints:
        # Where we left off, or the beginning.
        start = checkpoints.newest_good() or 0
        if start > config.steps:
            raise RunError(
                f"{run.path} has {start} steps behind it, more than steps={config.steps}; ask for more steps"
            )
        state = _restore_or_create(checkpoints, start, config, parts, parallel)
        constants = parallel.replicate(constants)
        if first:
            run.begin(config, listing, changes)
        metrics = Metrics(run.metrics, start, write=first)

        # One step, compiled once.
        step_fn = parallel.compile(partial(train_step, parts=parts, config=config))
        share = parallel.local_slice(config.batch_size)
        batches = Batches(
            photographs, config.seed, start, config.steps, config.batch_size, parallel.place_batch,
            share=slice(share.start, share.stop),
        )  # fmt: skip

        # The schedule and the noise live inside the step: nothing crosses to a device unasked.
        boards = config.tensorboard and first
        board = TensorBoard(run.path / "tensorboard", start) if boards else contextlib.nullcontext()
        reporter = Reporter(start, config.steps, quiet=not first)
        with reporter, board, batches, jax.transfer_guard("disallow"):
            notes = [*checkpoints.problems, *metrics.problems, *photographs.source.notes, *notes]
            if changes:
                notes.append(f"changed since this run began: {', '.join(changes)}")
            _greet(reporter, config, run, photographs, parallel, state, start, notes)
            speed, said = _Speed(config.batch_size), _warn(reporter, photographs, 0)
            for step, batch in enumerate(batches, start=start + 1):
                state, scores = step_fn(state, batch, constants)
                if step == start + 1:
                    speed.begin(step, scores)

                last, stopping = step == config.steps, stop.asked(step)
                log = last or step % config.log_every == 0
                look = last or step % config.eval_every == 0
                save = last or stopping or step % config.save_every == 0
                reporter.advance(step)
                if not (log or look or save):
                    continue

                # Do not change the order: scores are checked before the state that they came from is saved.
                numbers = _to_numbers(scores)
                _check(numbers, step, config, checkpoints)
                said = _warn(reporter, photographs, said)
                if log:
                    reporter.scores(step, numbers)
                    numbers |= speed.so_far(step, step_fn.flops, len(parallel.devices), parallel.devices[0])
                if look:
                    numbers |= _look(evaluate, parallel, state, step, run, reporter)
                if log or look:
                    metrics.write(step, numbers)
                if isinstance(board, TensorBoard):
                    board.show(step, numbers, run.sample(step) if look else None)
                if save:
                    require_same_state(state, step)
                    checkpoints.save(step, state, config, wait=last or stopping, scores=numbers)
                if stopping and not last:
                    return Outcome(state, step, {}, stop.signum)

            params = parallel.gather(state.averaged())
            if not first:
                return Outcome(state, config.steps, {})
            row = _final_scores(run, config.steps) or _look(evaluate, parallel, state, config.steps, run, reporter)
        if not row:
            raise NotFiniteError(
                f"{run.path}: the held-out photograph has no finite reconstruction after step {config.steps}, so "
                "nothing is exported; begin anew in another workdir with a lower learning rate"
            )
        _export(run, parts.model, params)
        write_report(run.path)
    return Outcome(state, config.steps, _only_scores(row))


def _restore_or_create(
    checkpoints: Checkpoints, start: int, config: TrainConfig, parts: Components, parallel: Parallel
) -> TrainState:
    if not start:
        with agreement() as facts:
            state = make_state(config, parts, load_start(config))
            facts |= facts_of_start(state)
        return parallel.place_state(state)
    # With the shardings of the devices that there are now.
    shapes = jax.eval_shape(partial(make_state, config, parts))
    like = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes, parallel.shardings(shapes),
    )  # fmt: skip
    return checkpoints.restore(start, like)


def _check(numbers: dict[str, float], step: int, config: TrainConfig, checkpoints: Checkpoints) -> None:
    """Ends a run that has stopped learning.

    Raises:
      NotFiniteError: If more updates in a row than allowed were left out, or all of a run that ends.
    """
    in_a_row = int(numbers["in_a_row"])
    if in_a_row > config.max_skipped:
        bad = [f"{name}={numbers[name]}" for name in FINITE if not math.isfinite(numbers.get(name, 0.0))]
        good = checkpoints.set_aside(step - in_a_row)
        kept = (
            f"the next start goes on after step {good}, the newest checkpoint whose weights have proven sound"
            if good
            else "there is no checkpoint from before"
        )
        raise NotFiniteError(
            f"{', '.join(bad)} at step {step}, and so for {in_a_row} steps in a row, "
            f"more than max_skipped={config.max_skipped}; {kept}. Lower the learning rate or clip_norm, or look at the "
            "data"
        )
    if step == config.steps and int(numbers["skipped"]) >= step:
        raise NotFiniteError(
            f"none of {step} updates was finite, so nothing was learned and nothing is exported; lower the learning "
            "rate or clip_norm, or look at the data"
        )


def _greet(
    reporter: Reporter,
    config: TrainConfig,
    run: RunDirectory,
    photographs: Photographs,
    parallel: Parallel,
    state: TrainState,
    start: int,
    notes: list[str],
) -> None:
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    count, platform = len(parallel.devices), parallel.devices[0].platform
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    processes += f", {config.devices_per_image} to an image" if config.devices_per_image > 1 else ""
    reporter.line(
        f"{run.path}: {weights:,} parameters; {len(photographs.names)} photographs and {photographs.held_out_name} "
        f"held out; {count} {platform} device{'s' if count > 1 else ''}{processes} ({config.parallel})"
    )
    for note in notes:
        reporter.line(note)
    if start == config.steps:
        reporter.line(f"this run is complete: all {start} steps are done")
    elif start:
        reporter.line(f"going on after step {start} of {config.steps}")


def _warn(reporter: Reporter, photographs: Photographs, said: int) -> int:
    """Says which images have been skipped since `said` of them were; returns how many there are now."""
    problems = photographs.problems
    if len(problems) > said:
        reporter.line(f"skipped {len(problems)} images that cannot be used, the last of them:")
        for problem in problems[max(said, len(problems) - _PROBLEMS) :]:
            reporter.line(f"  {problem}")
    return len(problems)


_PROBLEMS = 10  # that are said at a time; all are counted


class _Speed:
    """Images and arithmetic per second since it was asked last, without the first update, which is compiled for."""

    def __init__(self, batch_size: int):
        self._since: tuple[int, float] | None = None
        self._batch_size = batch_size

    def begin(self, step: int, scores: Scores) -> None:
        """Measures from the end of update `step`, which has these scores."""
        jax.block_until_ready(scores)
        self._since = (step, time.monotonic())

    def so_far(self, step: int, flops: float | None, count: int, device: Any) -> dict[str, float]:
        """Returns what is known of the updates up to `step`: nothing of the first alone."""
        before, since = self._since or (step, 0.0)
        if step == before:
            return {}
        now = (step, time.monotonic())
        rate = (step - before) / (now[1] - since)
        self._since = now
        speed = {"images_per_second": self._batch_size * rate}
        if flops:
            speed["tflops_per_second"] = rate * flops * count / 1e12
            peak = peak_flops(device.device_kind)
            if peak:
                speed["mfu"] = rate * flops / peak
        return speed


def _look(
    evaluate: HeldOutEvaluation, parallel: Parallel, state: TrainState, step: int, run: RunDirectory, reporter: Reporter
) -> dict[str, float]:
    """Evaluates on the held-out photograph, and keeps a picture of it; without scores if it is not finite."""
    params = parallel.gather(state.averaged())
    if jax.process_index():
        return {}
    try:
        comparison = evaluate(params)
    except NotFiniteError as error:
        reporter.line(f"step {step}: {error}")
        return {}
    save_comparisons(run.sample(step), [comparison])
    known = {name: getattr(comparison.scores, name) for name in ("psnr", "ssim", "lpips")}
    scores = {name: score for name, score in known.items() if score is not None}
    reporter.line(f"step {step}: held-out {describe_scores(scores)}")
    return {_LOGGED_AS.get(name, name): score for name, score in scores.items()}


# Beside the loss's own term of that name, which is of the training crops.
_LOGGED_AS = {"lpips": "held_out_lpips"}


def describe_scores(scores: dict[str, float]) -> str:
    """Returns the scores of an evaluation in one phrase."""
    image = ImageScores("", 0, 0, scores["psnr"], scores.get("ssim"), scores.get("lpips"))
    return ", ".join(image.in_words())


def _final_scores(run: RunDirectory, step: int) -> dict[str, float] | None:
    """The scores of the last step, if an evaluation of it was written down."""
    rows = [row for row in read_metrics(run.metrics) if row["step"] == step and isinstance(row.get("psnr"), float)]
    return rows[-1] if rows else None


def _only_scores(row: Mapping[str, float]) -> dict[str, float]:
    """Those of an evaluation, by their own names."""
    logged = {name: _LOGGED_AS.get(name, name) for name in ("psnr", "ssim", "lpips")}
    return {name: row[there] for name, there in logged.items() if there in row}


def _export(run: RunDirectory, model: AutoEncoder, params: dict[str, Any]) -> None:
    """Writes the model folder; again even if it is there, for it may be from when the run was to be shorter."""
    require_finite(params, f"the model of {run.path}")
    try:
        save_pretrained(run.export, model, params, force=True)
    except OSError as error:
        raise RunError(f"{run.export} could not be written ({error}); start the run again when it can") from error


def _to_numbers(scores: Scores) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(scores).items()}
