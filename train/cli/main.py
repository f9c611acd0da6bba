"""Entry point of `flax-vae-train`.  User errors are printed as one line without a traceback."""

import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from flax_vae.convert.console import advise, escaped_output, guard, quiet_libraries
from flax_vae.train.cli import compare, evaluate, plan, recipes
from flax_vae.train.cli.flags import Flags, parse_run_flags
from flax_vae.train.cli.together import DistributionFlags, end, is_joined, join
from flax_vae.train.config import TrainConfig
from flax_vae.train.errors import TrainError

PROG = "flax-vae-train"
_SUBCOMMANDS = {"compare": compare, "eval": evaluate, "plan": plan, "recipes": recipes}
_LONGEST = 200  # characters of an error of JAX


@escaped_output()
def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      args: Arguments after the program's name; None takes those of the process.

    Returns:
      Exit code: 0 if the run is complete, 1 for an error that the user can fix, 128 + n if stopped by signal n.

    Raises:
      SystemExit: With code 2 for wrong flags, 0 after `--help`.
    """
    words = list(sys.argv[1:] if args is None else args)
    return guard(PROG, lambda: _main(words))


def _main(words: list[str]) -> int:
    subcommand = words[0] if words and words[0] in _SUBCOMMANDS else None
    quiet_libraries(tpu_compiler=subcommand == "plan" and any(word.startswith("--topology") for word in words))
    if subcommand is not None:
        advise(PROG, "")
        return _SUBCOMMANDS[subcommand].main(words[1:])
    advise(PROG, "the same command goes on from the last checkpoint")
    flags = parse_run_flags(Flags, prog=PROG, args=words)
    try:
        status = guard(PROG, lambda: _work(flags))
    except Exception as error:
        if not is_joined(_distribution(flags)):
            raise
        status = _give_up(error)  # the others wait for this process
    return end(status, _distribution(flags))


def _work(flags: Flags) -> int:
    from flax_vae.convert.files import as_path
    from flax_vae.train.cli.resolve import default_workdir, resolve  # loads NumPy: not for --help

    if flags.run.fit and is_joined(_distribution(flags)):
        raise TrainError(
            "--fit compiles for the devices of one process; find --remat and --accumulate with `flax-vae-train plan "
            "--fit`, and pass them to all processes"
        )
    with join(_distribution(flags)):
        workdir = as_path(flags.run.workdir or default_workdir(flags))
        config = resolve(flags, workdir)
    from flax_vae.ops import cache_for_command, require_devices  # load JAX: only now, when the settings are right

    if not flags.run.dry_run:  # which writes nothing
        cache_for_command(flags.run.compilation_cache)
    require_devices()
    if flags.run.fit:
        config = _fitted(config, workdir)
    return _show(config, workdir, flags) if flags.run.dry_run else _run(config, workdir, flags)


def _distribution(flags: Flags) -> DistributionFlags:
    """Returns what flags say of other processes; a dry run needs none."""
    return DistributionFlags() if flags.run.dry_run else flags.distribution


def _fitted(config: TrainConfig, workdir: Path) -> TrainConfig:
    """Returns settings with which a step fits the devices here; those of a run that is resumed stay."""
    from flax_vae.train.plan import fitting, local
    from flax_vae.train.run import RunDirectory

    if RunDirectory(workdir).stored_config() is not None:
        return config
    target = local()
    found = fitting(config, target)
    used, has = (size / 2**30 for size in (found.memory.total, target.memory or 0))
    config = found.config
    print(f"remat {config.remat}, accumulate {config.optim.accumulate}: {used:.1f} of {has:.1f} GiB", file=sys.stderr)
    return config


def _show(config: TrainConfig, workdir: Path, flags: Flags) -> int:
    from flax_vae.train.plan import describe_run

    print(describe_run(config, workdir, accept_changed_data=flags.run.accept_changed_data), end="")
    return 0


def _run(config: TrainConfig, workdir: Path, flags: Flags) -> int:
    begun = time.monotonic()
    from flax_vae.train.loop import describe_scores, train

    outcome = train(config, workdir, accept_changed_data=flags.run.accept_changed_data, take_over=flags.run.take_over)
    if outcome.stopped_by is not None:
        print(f"stopped after step {outcome.step} of {config.steps}; the same command goes on from there")
        return 128 + outcome.stopped_by
    if outcome.scores:  # the first process has them
        print(
            f"{'held-out photograph' if config.validation.data is None else 'validation'}: "
            f"{describe_scores(outcome.scores)}; "
            f"model in {workdir / 'export'} ({time.monotonic() - begun:.0f} s)"
        )
    return 0


def _give_up(error: Exception) -> int:
    """Prints why one of several processes cannot go on; in one line where another one may have ended."""
    import jax

    if not isinstance(error, jax.errors.JaxRuntimeError):
        traceback.print_exception(error)
        return 1
    reason = next(iter(str(error).splitlines()), "")
    reason = reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}..."
    print(
        f"{PROG}: process {jax.process_index()} cannot go on: another process ended, whose message says why, or a "
        f"device failed ({reason}); the same command goes on from the last checkpoint",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
