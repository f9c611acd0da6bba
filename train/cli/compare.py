"""`flax-vae-train compare`: runs side by side on one HTML page."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from flax_vae.convert.console import Section, escaped_output, guard, parse_flags

PROG = "flax-vae-train compare"


@dataclass(frozen=True)
class PageFlags:
    """Where the page is written."""

    output: Annotated[Path, arg(metavar="FILE.html")] = Path("compare.html")
    """HTML file, which replaces an older one; it needs no other file, no network and no script."""


@dataclass(frozen=True)
class CompareFlags:
    """Shows runs side by side on one page.

    The page has the curves of all runs over each other, by steps, images and time; their last scores; the
    reconstructions of each photograph side by side; and the settings that differ.
    """

    runs: Annotated[
        Positional[tuple[Path, ...]],
        arg(
            metavar="RUN...",
            help="Run directories, also in buckets, finished or in progress; at most twelve.",
            help_behavior_hint="(required)",
        ),
    ]
    page: Section[PageFlags] = PageFlags()


@escaped_output()
def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
      Exit code: 0, or 1 for an error that the user can fix.
    """
    return guard(PROG, lambda: _run(parse_flags(CompareFlags, prog=PROG, args=args)))


def _run(flags: CompareFlags) -> int:
    from flax_vae.train.report import write_run_comparison  # numpy and Pillow, which --help does without

    for note in write_run_comparison(flags.runs, flags.page.output):
        print(note, file=sys.stderr)
    print(flags.page.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
