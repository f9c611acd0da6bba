"""Reports the errors that a user can fix, and interrupts, for every command."""

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flax_vae.convert.console.interrupts import advice
from flax_vae.convert.console.terminal import printable
from flax_vae.convert.errors import FlaxVaeError
from flax_vae.convert.extras import explain_missing


def guard(prog: str, work: Callable[[], int], *, words: Sequence[str] | None = None) -> int:
    """Runs the work of a command; an error that the user can fix becomes one line on standard error.

    Such errors are those of this project, those of the operating system, and missing packages.  Any other exception, a
    bare `ValueError` too, is a defect: it is not caught, so that its traceback is printed.

    Args:
      prog: Name of the command, first in the line.
      work: Function that does the work and returns the exit status.
      words: Arguments of a command whose messages keep their lines; file names among them are escaped.  None prints
        every message as one line.

    Returns:
      The exit status: that of the work, 1 after an error, 130 after Ctrl-C.

    Raises:
      BrokenPipeError: If standard output was closed; `flax_vae.convert.console.run` handles it.
    """
    try:
        return work()
    except BrokenPipeError:  # an OSError, but the command did nothing wrong
        raise
    except KeyboardInterrupt:
        print(f"{prog}: interrupted{f'; {advice(prog)}' if advice(prog) else ''}", file=sys.stderr)
        return 128 + signal.SIGINT
    except ImportError as error:
        sentence = explain_missing(error)
        if sentence is None:
            raise
        print(f"{prog}: {sentence}", file=sys.stderr)
    except (FlaxVaeError, OSError) as error:
        print(f"{prog}: {_text(error, words)}", file=sys.stderr)
    return 1


def _text(error: Exception, words: Sequence[str] | None) -> str:
    text = str(error)
    if words is None:
        return " ".join(text.split())
    for name in (str(Path(word)) for word in words):  # a message may have several lines, but a name may not
        text = text.replace(name, printable(name)) if "\n" in name else text
    return text
