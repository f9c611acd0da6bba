"""Parses the flags of a command; a mistake is reported in one line."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from typing import Any

from flax_vae.convert.console.terminal import printable, raw_stream
from flax_vae.convert.errors import suggest

_KINDS = {"int": "an integer", "float": "a number"}
_NOT_PARSED = re.compile(r"(?:invalid literal for (int)\(\) with base 10|could not convert string to (float)): (.*)")


def parse_flags(flags: Any, *, prog: str, args: Any = None) -> Any:
    """Calls `tyro.cli`, whose help is in colour on a terminal.

    Args:
      flags: Class of the flags; its sections are fields annotated as `Section[...]`.
      prog: Name of the command.
      args: Arguments after the command's name; None takes those of the process.

    Returns:
      Instance of the class.

    Raises:
      SystemExit: With code 2 for a mistake, which is printed in one line; with code 0 after `--help`.
    """
    import tyro

    def parse(words: Any) -> Any:
        return tyro.cli(flags, prog=prog, args=words)

    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = raw_stream(sys.stdout), raw_stream(sys.stderr)
    try:
        with _one_line_errors(prog, parse):
            return parse(args)
    finally:
        sys.stdout, sys.stderr = before


def _one_line_errors(prog: str, parse: Callable[[Any], Any]) -> contextlib.AbstractContextManager[Any]:
    try:
        from tyro import _errors  # a private module, without which tyro prints errors in boxes
    except ImportError:
        return contextlib.nullcontext()

    def report(event: Any) -> None:
        if isinstance(event, _errors.UnrecognizedArgs):
            sentence = _unknown(event.tokens, parse)
        elif isinstance(event, _errors.InvalidChoice):
            choices = list(event.choices)
            if "None" in choices:  # of an optional choice, in an order that differs between processes
                choices = sorted(set(choices) - {"None"})
            hint = suggest(event.value, choices, listed=True)
            sentence = f"{_shown(event.argument)} {printable(event.value)} is not a choice; {hint}"
        elif isinstance(event, _errors.BadValue):
            sentence = f"{_shown(event.argument)} needs a value"
        elif isinstance(event, _errors.MissingArgs):
            names = ", ".join(_shown(missing.arg) for missing in event.missing_arguments)
            sentence = f"missing {names}"
        elif isinstance(event, _errors.InstantiationFailure):
            sentence = _not_parsed(event.argument, event.message)
        else:
            return
        print(f"{prog}: {sentence}; see {prog} --help", file=sys.stderr)
        raise SystemExit(2)

    return _errors.on_parse_error(report)


def _unknown(tokens: list[str], parse: Callable[[Any], Any]) -> str:
    name = tokens[0].partition("=")[0]
    if not name.startswith("-"):
        return f"unexpected argument {printable(name)!r}"
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        parse(["--help"])
    known = sorted(set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text.getvalue())))
    hint = suggest(name, known, listed=False)
    return f"unknown option {printable(name)}" + (f"; {hint}" if hint else "")


def _not_parsed(argument: Any, message: str) -> str:
    """Returns the sentence about a value that a constructor refused."""
    message = " ".join(message.split())
    if argument is None:
        return printable(message)
    found = _NOT_PARSED.search(message)
    sentence = f"{found[3]} must be {_KINDS[found[1] or found[2]]}" if found else f"cannot be read: {message}"
    return printable(f"{_shown(argument)} {sentence}")


def _shown(argument: Any) -> str:
    """Returns the name of an argument as help shows it."""
    return argument.lowered.metavar if argument.is_positional() else argument.display_name()
