"""Checks of the fields of a dataclass; each raises a ValueError that names the field and its value."""

import dataclasses
from typing import Any, Literal, get_args, get_origin

from flax_vae.convert.errors import ArgumentError

MAX_COUNT = 2**31 - 1  # steps are counted in int32 on a device
_FLOAT32_MAX = 3.4028234e38


def at_least(least: int, *, most: int = MAX_COUNT, **values: int) -> None:
    """Raises unless the values are integers from `least` to `most`."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ArgumentError(f"{name}={value!r} must be a whole number of at least {least}", field=name, value=value)
        if value > most:
            shown = value if value.bit_length() < 200 else f"a number of {value.bit_length()} bits"
            raise ArgumentError(f"{name}={shown} must be at most {most:,}", field=name, value=value)


def finite(**values: float) -> None:
    """Raises unless the values are finite numbers in float32."""
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) <= _FLOAT32_MAX:  # NaN is neither larger nor smaller
            hint = f", at most {_FLOAT32_MAX} in float32" if number and abs(value) > _FLOAT32_MAX else ""
            shown = f"{repr(value):.80}" if not isinstance(value, int) or value.bit_length() < 200 else "a long number"
            raise ArgumentError(f"{name}={shown} must be a finite number{hint}", field=name, value=value)


def positive(**values: float) -> None:
    """Raises unless the values are greater than 0."""
    finite(**values)
    for name, value in values.items():
        if value <= 0:
            raise ArgumentError(f"{name}={value!r} must be greater than 0", field=name, value=value)


def from_zero(**values: float) -> None:
    """Raises unless the values are at least 0."""
    finite(**values)
    for name, value in values.items():
        if value < 0:
            raise ArgumentError(f"{name}={value!r} must be at least 0", field=name, value=value)


def below_one(**values: float) -> None:
    """Raises unless the values are at least 0 and less than 1."""
    finite(**values)
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ArgumentError(f"{name}={value!r} must be at least 0 and less than 1", field=name, value=value)


def check_types(instance: Any) -> None:
    """Raises if a field that should be a bool, text or one of several names is something else, as it may in a file."""
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if field.type is bool and not isinstance(value, bool):
            raise ArgumentError(f"{field.name}={repr(value):.80} must be true or false", field=field.name, value=value)
        if field.type == str | None and not isinstance(value, str | None):
            raise ArgumentError(f"{field.name}={repr(value):.80} must be text", field=field.name, value=value)
        if get_origin(field.type) is Literal and value not in get_args(field.type):
            names = " or ".join(map(repr, get_args(field.type)))
            raise ArgumentError(f"{field.name}={value!r} must be {names}", field=field.name, value=value)
