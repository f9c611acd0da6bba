"""`flax-vae-train recipes`: prints the recipes as a table."""

import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flax_vae.convert.console import Section, escaped_output, guard, parse_flags
from flax_vae.train.config import about_recipes

PROG = "flax-vae-train recipes"
_WIDTHS = {"recipe": 24, "hardware": 26, "memory": 22, "time": 22, "extras": 12, "expect": 40}


@dataclass(frozen=True)
class FormFlags:
    """Form of the table."""

    markdown: bool = False
    """Print the table as GitHub Markdown."""


@dataclass(frozen=True)
class RecipeTableFlags:
    """Lists the recipes of --preset: hardware, memory, time, extras to install, and what to expect."""

    table: Section[FormFlags] = FormFlags()


@escaped_output()
def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
      Exit code: 0.
    """
    return guard(PROG, lambda: _run(parse_flags(RecipeTableFlags, prog=PROG, args=args)))


def _run(flags: RecipeTableFlags) -> int:
    print(*_rows(markdown=flags.table.markdown), sep="\n")
    return 0


def _rows(*, markdown: bool) -> Iterator[str]:
    recipes = about_recipes()
    if markdown:
        yield "| " + " | ".join(_WIDTHS) + " |"
        yield "|" + "---|" * len(_WIDTHS)
        yield from ("| " + " | ".join(one.values()) + " |" for one in recipes)
        return
    for one in [dict(zip(_WIDTHS, _WIDTHS, strict=True)), *recipes]:
        cells = [textwrap.wrap(one[name], width) or [""] for name, width in _WIDTHS.items()]
        for line in range(max(map(len, cells))):
            parts = zip(cells, _WIDTHS.values(), strict=True)
            yield "  ".join((cell[line] if line < len(cell) else "").ljust(width) for cell, width in parts).rstrip()


if __name__ == "__main__":
    sys.exit(main())
