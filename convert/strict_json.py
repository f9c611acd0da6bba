"""JSON that means one thing: no name twice in an object, no NaN."""

import json
from typing import Any


def loads_object(data: bytes) -> dict[str, Any]:
    """Returns the object of named fields that UTF-8 text holds.

    Python's reader, and that of safetensors, let the last of two equal names win without a word: what a person sees in
    the file is then not what a program reads.

    Raises:
      ValueError: if the text is not JSON, not an object, repeats a name within one, or is nested without end.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_name_twice, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, an object of named fields was expected")
    return value


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"it names {', '.join(map(repr, repeated))} more than once")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
