"""Reads and writes YAML 1.2, in which `1e-6` is a number, `no` and `12:30` are text, and 010 is ten."""

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from flax_vae.convert.errors import ArgumentError

_DEEPEST = 30  # levels; a deeply nested text takes the library minutes


class _Constructor(SafeConstructor):
    """Constructs plain values; the core schema of YAML 1.2 has no dates, so they are text."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def parse_yaml(text: str) -> Any:
    """Returns the value of a YAML document.

    Args:
      text: YAML document.

    Raises:
      ValueError: If the text is not one document of plain values, in one line that begins with the line's number.
    """
    try:
        depth = 0
        for event in _yaml().parse(text):
            # Settings need neither, and a few lines of aliases of aliases stand for billions of values.
            if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
                raise ArgumentError(
                    f"line {event.start_mark.line + 1}: anchors and aliases (&name, *name) are not read"
                )
            if getattr(event, "tag", None) is not None:
                raise ArgumentError(f"line {event.start_mark.line + 1}: tags (!name) are not read")
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > _DEEPEST:
                raise ArgumentError(f"line {event.start_mark.line + 1}: nested more than {_DEEPEST} levels deep")
        return _yaml().load(text)
    except YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = "" if mark is None else f"line {mark.line + 1}: "
        hint = "; indent with spaces" if "'\\t'" in str(problem) else ""
        raise ArgumentError(f"{place}{str(problem or error).splitlines()[0]}{hint}") from None


def format_yaml(fields: Mapping[str, Any]) -> str:
    """Returns nested fields as a YAML document, in their order.

    Args:
      fields: Nested settings.
    """
    stream = io.StringIO()
    _yaml().dump(fields, stream)
    return stream.getvalue()


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)  # libyaml reads version 1.1
    yaml.Constructor = _Constructor
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue] - annotated as None
    return yaml
