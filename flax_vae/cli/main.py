"""`flax-vae`: images and latents in the shell; what a person can put right ends in one line on standard error."""

import importlib
import sys
from collections.abc import Sequence

from flax_vae.convert.console import escaped_output, guard, quiet_libraries
from flax_vae.convert.errors import suggest

PROG = "flax-vae"

# What each does, and the module whose `main` does it; loaded when it is asked for.
COMMANDS = {
    "encode": ("images to latents, for training on them", "flax_vae.cli.encode"),
    "decode": ("those latents back to images", "flax_vae.cli.decode"),
    "reconstruct": ("images beside their reconstructions, with PSNR and SSIM", "flax_vae.cli.reconstruct"),
}

USAGE = f"""usage: {PROG} COMMAND ...

Images to latents and back, with any autoencoder of the FLUX and Stable Diffusion family.

commands:
{chr(10).join(f"  {name:12} {what}" for name, (what, _) in COMMANDS.items())}

{PROG} COMMAND --help says what each takes.  Weights are converted by flax-vae-convert, and trained by flax-vae-train.
"""


@escaped_output()
def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      args: Words after the program's name; None takes those of the process.

    Returns:
      The exit status: 0; 1 for what the caller can put right; 2 for a misused command line; 130 when interrupted, 143
      when terminated.

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
