"""Entry point of `flax-vae`; light, so that an interrupt during the imports is one line too."""

import sys

from flax_vae.convert.console import run


def main() -> int:
    """Runs the command on the arguments of the process and returns the exit status."""
    return run("flax-vae", "flax_vae.cli.main")


if __name__ == "__main__":
    sys.exit(main())
