"""Selects weights of an architecture by patterns over their names in PyTorch."""

import fnmatch
from collections.abc import Iterable
from functools import cache

from flax_vae.convert.architecture import Architecture
from flax_vae.convert.errors import ArgumentError, suggest
from flax_vae.train.config.validation import positive

# What the word selects, beside the weights of that name: the convolution after the latents belongs to the decoder too.
_WORDS = {"all": ("*",), "decoder": ("decoder", "post_quant_conv")}
# The latents' statistics are measured, not trained.
_MEASURED = "bn/"
_NAMES = "expected names such as decoder.up.0, which `flax-vae-convert table` prints"
# Beginnings of the Flax paths of what `encode` uses.
_ENCODES = ("encoder/", "quant_conv/", "reg/", "time_embed/")


@cache
def trained_paths(model: Architecture, trainable: str) -> frozenset[str]:
    """Returns the Flax paths of the weights that patterns select, such as `decoder/conv_out/kernel`.

    Args:
      model: Architecture.
      trainable: Patterns, separated by commas; see `TrainConfig.trainable`.

    Raises:
      ArgumentError: If a pattern matches no weight; the message names the nearest ones.
    """
    return frozenset().union(*(_select(model, "trainable", pattern) for pattern in split(trainable)))


@cache
def part_rates(model: Architecture, rates: str) -> dict[str, float]:
    """Returns the peak learning rate of each weight that has its own, by its Flax path.

    Args:
      model: Architecture.
      rates: Patterns and rates; see `OptimConfig.part_learning_rates`.

    Raises:
      ArgumentError: If a pattern matches no weight; the message names the nearest ones.
    """
    return {
        path: rate
        for pattern, rate in parse_rates(rates)
        for path in sorted(_select(model, "part_learning_rates", pattern))
    }


def parse_rates(rates: str) -> list[tuple[str, float]]:
    """Returns the patterns and learning rates of a text such as `decoder.conv_out=1e-5,decoder.mid=2e-5`.

    Raises:
      ArgumentError: If the text has another form, or a rate is not greater than 0.
    """
    parsed = []
    for part in split(rates):
        pattern, _, number = (word.strip() for word in part.partition("="))
        try:
            rate = float(number)
        except ValueError:
            raise ArgumentError(
                f"part_learning_rates={rates!r} must be patterns with a rate each, separated by commas, such as "
                f"decoder.conv_out=1e-5; {part!r} is not",
                field="part_learning_rates",
                value=rates,
            ) from None
        positive(**{f"part_learning_rates: {pattern}": rate})
        parsed.append((pattern, rate))
    return parsed


def changes_latents(trained: Iterable[str]) -> bool:
    """Returns whether the latents change if the weights of these Flax paths do.

    Args:
      trained: Flax paths of the weights.
    """
    return any(path.startswith(_ENCODES) for path in trained)


def split(patterns: str) -> list[str]:
    """Returns the patterns of a text that separates them by commas."""
    return [pattern.strip() for pattern in patterns.split(",")]


def _select(model: Architecture, field: str, pattern: str) -> frozenset[str]:
    """Returns the Flax paths of the weights whose name, or the name of a module around them, matches a pattern."""
    from flax_vae.convert.table import expand  # loads NumPy: not for --help

    rows = expand(model, "flux")
    globs = [glob for whole in _WORDS.get(pattern, (pattern,)) for glob in (whole, f"{whole}.*")]
    found = {row.ours for row in rows if any(fnmatch.fnmatchcase(row.theirs, glob) for glob in globs)}
    if not found:
        names = dict.fromkeys([*_WORDS, *(part for row in rows for part in _with_modules(row.theirs))])
        raise ArgumentError(
            f"{field}: {pattern!r} matches no weight of this model; "
            f"{suggest(pattern, names, listed=False, most=3) or _NAMES}",
            field=field,
            value=pattern,
        )
    learned = frozenset(path for path in found if not path.startswith(_MEASURED))
    if not learned:
        raise ArgumentError(
            f"{field}: {pattern!r} holds the latents' statistics, which are measured and not trained; leave it out",
            field=field,
            value=pattern,
        )
    return learned


def _with_modules(name: str) -> list[str]:
    """Returns the names of the modules around a weight, from the outside, and its own."""
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]
