"""What the fields of a record may be: each function raises a ValueError that names the field and its value."""

import dataclasses
from typing import Any

MAX_COUNT = 2**31 - 1  # steps are counted in int32 on a device
_FLOAT32_MAX = 3.4028234e38


def at_least(least: int, *, most: int = MAX_COUNT, **values: int) -> None:
    """Refuses what is not a whole number between `least` and `most`."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
        if value > most:
            shown = value if value.bit_length() < 200 else f"a number of {value.bit_length()} bits"
            raise ValueError(f"{name}={shown} must be at most {most:,}")


def one_of(choices: tuple[str, ...], **values: str) -> None:
    """Refuses what is none of the choices."""
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name}={value!r} must be {' or '.join(map(repr, choices))}")


def finite(**values: float) -> None:
    """Refuses what is no number, or an infinite one."""
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) <= _FLOAT32_MAX:  # NaN is neither larger nor smaller
            hint = "; YAML needs a point in 1.0e-6" if isinstance(value, str) else ""
            hint = f", at most {_FLOAT32_MAX} in float32" if number and abs(value) > _FLOAT32_MAX else hint
            shown = f"{repr(value):.80}" if not isinstance(value, int) or value.bit_length() < 200 else "a long number"
            raise ValueError(f"{name}={shown} must be a finite number{hint}")


def positive(**values: float) -> None:
    """Refuses what is not greater than 0."""
    finite(**values)
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name}={value!r} must be greater than 0")


def from_zero(**values: float) -> None:
    """Refuses what is less than 0."""
    finite(**values)
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name}={value!r} must be at least 0")


def below_one(**values: float) -> None:
    """Refuses what is less than 0, or 1 and more."""
    finite(**values)
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value!r} must be at least 0 and less than 1")


def check_types(record: Any) -> None:
    """Refuses fields of a dataclass that should be true or false, or text, and are something else, as in a file."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.type is bool and not isinstance(value, bool):
            raise ValueError(f"{field.name}={repr(value):.80} must be true or false")
        if field.type == str | None and not isinstance(value, str | None):
            raise ValueError(f"{field.name}={repr(value):.80} must be text")
