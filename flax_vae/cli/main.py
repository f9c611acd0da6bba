"""Entry point of `flax-vae`.  User errors are printed as one line without a traceback."""

import importlib
import sys
from collections.abc import Sequence

from flax_vae.convert.console import escaped_output, guard, quiet_libraries
from flax_vae.convert.errors import suggest

PROG = "flax-vae"

# Description of each command, and the module with its `main`, which is imported on demand.
COMMANDS = {
    "encode": ("encode images to latents, for training on them", "flax_vae.cli.encode"),
    "decode": ("decode such latents to images", "flax_vae.cli.decode"),
    "reconstruct": ("draw images beside their reconstructions, with PSNR and SSIM", "flax_vae.cli.reconstruct"),
}

USAGE = f"""usage: {PROG} COMMAND ...

Encodes and decodes images with any autoencoder of the FLUX and Stable Diffusion family.

commands:
{chr(10).join(f"  {name:12} {what}" for name, (what, _) in COMMANDS.items())}

See {PROG} COMMAND --help for options.  flax-vae-convert converts weights, and flax-vae-train trains them.
"""


@escaped_output()
def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      args: Arguments after the program's name; None uses those of the process.

    Returns:
      Exit status: 0; 1 for errors that the user can fix; 2 for a wrong command line; 130 after an interrupt, 143 after
      SIGTERM.

    Raises:
      SystemExit: 2 for wrong flags of a command, 0 after its `--help`.
    """
    words = list(sys.argv[1:] if args is None else args)
    quiet_libraries()
    if words[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if not words:
        print(USAGE, end="", file=sys.stderr)
        return 2
    if words[0] not in COMMANDS:
        print(f"{PROG}: unknown command {words[0]!r}; {suggest(words[0], COMMANDS, listed=True)}", file=sys.stderr)
        return 2
    module = COMMANDS[words[0]][1]
    return guard(f"{PROG} {words[0]}", lambda: importlib.import_module(module).main(words[1:]))


if __name__ == "__main__":
    sys.exit(main())
