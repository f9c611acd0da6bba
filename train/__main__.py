"""Entry point of `flax-vae-train`; light, so that an interrupt during the imports is one line too."""

import sys

from flax_vae.convert.console import run


def main() -> int:
    """Runs the command on the arguments of the process and returns the exit status."""
    return run("flax-vae-train", "flax_vae.train.cli.main")


if __name__ == "__main__":
    sys.exit(main())
