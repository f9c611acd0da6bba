"""Entry point of `flax-vae-train`; imports little, so that an interrupt during further imports also prints one line."""

import sys

from flax_vae.convert.console import run


def main() -> int:
    """Runs the command on the arguments of the process and returns the exit status."""
    return run("flax-vae-train", "flax_vae.train.cli.main")


if __name__ == "__main__":
    sys.exit(main())
