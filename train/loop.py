"""The story of a run."""

import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_vae import AutoEncoder, save_pretrained
from train.checkpoints import Checkpoints
from train.config import TrainConfig
from train.data import Photographs
from train.errors import RunError
from train.evaluate import Evaluator
from train.optim import make_optimizer, make_schedule
from train.parallel import PARALLEL, Parallel
from train.pictures import save_grid
from train.report import Metrics, Reporter, read_metrics
from train.run_directory import RunDirectory
from train.signals import StopRequest, stop_requests
from train.state import TrainState, create_state
from train.step import Scores, train_step


class Outcome(NamedTuple):
    """What a run came to.

    Attributes:
      state: after the last update.
      step: updates done.
      scores: `psnr` (decibels) and `ssim` on the held-out photograph; empty where the run was stopped.
      stopped_by: the signal that stopped it, or None.
    """

    state: TrainState
    step: int
    scores: dict[str, float]
    stopped_by: int | None = None


def train(config: TrainConfig, workdir: Path) -> Outcome:
    """Trains an autoencoder until `config.steps` updates are done; resumes by itself from `workdir`.

    A run that was interrupted, however that happened, ends with the same weights as one that was not.  SIGTERM and
    Ctrl-C save a checkpoint after the current step and end the run early.

    Args:
      config: the run.
      workdir: its directory; made if missing.

    Returns:
      The final state and its scores.

    Raises:
      TrainError: for whatever the caller can put right: photographs, batch size, a directory that holds another run,
        a full disk, a loss that is not finite.
    """
    with stop_requests() as stop:
        return _train(config, RunDirectory(workdir), stop)


def _train(config: TrainConfig, run: RunDirectory, stop: StopRequest) -> Outcome:
    # The cast.
    photographs = Photographs(config.data)
    parallel = PARALLEL[config.parallel]()
    parallel.check_batch_size(config.batch_size)
    dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)
    model = AutoEncoder(config.model, dtype=dtype, remat=config.remat)
    optimizer = make_optimizer(config.optim, config.steps)
    evaluate = Evaluator(model, parallel, photographs.held_out())
    changes = run.check(config)

    with Checkpoints(run.checkpoints) as checkpoints:
        # Where we left off, or the beginning.
        start = checkpoints.latest_step or 0
        if start > config.steps:
            raise RunError(
                f"{run.path} has {start} steps behind it, more than steps={config.steps}; ask for more steps"
            )
        run.begin(config)
        state = _restore_or_create(checkpoints, config, model, optimizer, parallel)
        metrics = Metrics(run.metrics, start)

        # One step, compiled once.
        schedule = make_schedule(config.optim, config.steps)
        step_fn = parallel.compile(
            partial(train_step, model=model, optimizer=optimizer, schedule=schedule, loss=config.loss, seed=config.seed)
        )

        # The schedule and the noise live inside the step: nothing crosses to a device unasked.
        with Reporter(start, config.steps) as reporter, jax.transfer_guard("disallow"):
            _greet(reporter, config, run, photographs, parallel, state, start, changes)
            since = (start, time.monotonic())
            for done in range(start, config.steps):  # `done` updates are behind us
                batch = parallel.place_batch(photographs.batch(config.seed, done, config.batch_size))
                state, scores = step_fn(state, batch)

                step, last, stopping = done + 1, done + 1 == config.steps, bool(stop)
                log = last or step % config.log_every == 0
                look = last or step % config.eval_every == 0
                save = last or stopping or step % config.save_every == 0
                reporter.advance(step)
                if not (log or look or save):
                    continue

                # Do not change the order: scores are checked before the state that they came from is saved.
                numbers = _to_numbers(scores)
                metrics.check(step, numbers)
                if log:
                    reporter.scores(step, numbers)
                    now = (step, time.monotonic())
                    numbers["images_per_second"] = config.batch_size * (now[0] - since[0]) / (now[1] - since[1])
                    since = now
                if look:
                    numbers |= _look(evaluate, state, step, run, reporter)
                if log or look:
                    metrics.write(step, numbers)
                if save:
                    checkpoints.save(step, state, config, wait=last or stopping)
                if stopping and not last:
                    return Outcome(state, step, {}, stop.signum)

            scores = _final_scores(run, config.steps) or _look(evaluate, state, config.steps, run, reporter)
        _export(run, model, state)
    return Outcome(state, config.steps, scores)


def _restore_or_create(
    checkpoints: Checkpoints, config: TrainConfig, model: AutoEncoder, optimizer: Any, parallel: Parallel
) -> TrainState:
    def create() -> TrainState:
        return create_state(model, optimizer, config.seed, transparent=config.transparent_start)

    latest = checkpoints.latest_step
    if latest is None:
        return parallel.place_state(create())
    # With the shardings of the devices that there are now.
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=parallel.replicated), jax.eval_shape(create)
    )
    return checkpoints.restore(latest, like)


def _greet(
    reporter: Reporter,
    config: TrainConfig,
    run: RunDirectory,
    photographs: Photographs,
    parallel: Parallel,
    state: TrainState,
    start: int,
    changes: list[str],
) -> None:
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    count, platform = len(parallel.devices), parallel.devices[0].platform
    reporter.line(
        f"{run.path}: {weights:,} parameters; {len(photographs.names)} photographs and {photographs.held_out_name} "
        f"held out; {count} {platform} device{'s' if count > 1 else ''} ({config.parallel})"
    )
    if changes:
        reporter.line(f"changed since this run began: {', '.join(changes)}")
    if start == config.steps:
        reporter.line(f"this run is complete: all {start} steps are done")
    elif start:
        reporter.line(f"going on after step {start} of {config.steps}")


def _look(evaluate: Evaluator, state: TrainState, step: int, run: RunDirectory, reporter: Reporter) -> dict[str, float]:
    """Evaluates on the held-out photograph, and keeps a picture of it."""
    evaluation = evaluate(state.params)
    save_grid(run.samples / f"step_{step:07}.png", evaluation)
    psnr, ssim = evaluation.scores["psnr"], evaluation.scores["ssim"]
    reporter.line(f"step {step}: held-out PSNR {psnr:.2f} dB, SSIM {ssim:.3f}")
    return evaluation.scores


def _final_scores(run: RunDirectory, step: int) -> dict[str, float] | None:
    """The scores of the last step, if an evaluation of it was written down."""
    rows = [row for row in read_metrics(run.metrics) if row["step"] == step and "psnr" in row]
    return {name: rows[-1][name] for name in ("psnr", "ssim")} if rows else None


def _export(run: RunDirectory, model: AutoEncoder, state: TrainState) -> None:
    """Writes the model folder; again even if it is there, for it may be from when the run was to be shorter."""
    try:
        save_pretrained(run.export, model, state.params, force=True)
    except OSError as error:
        raise RunError(f"{run.export} could not be written ({error}); start the run again when it can") from error


def _to_numbers(scores: Scores) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(scores).items()}
