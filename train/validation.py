"""What the fields of a record may be: each function raises a ValueError that names the field and its value."""

import math


def at_least(least: int, **values: int) -> None:
    """Refuses what is no whole number of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")


def one_of(choices: tuple[str, ...], **values: str) -> None:
    """Refuses what is none of the choices."""
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name}={value!r} must be {' or '.join(map(repr, choices))}")


def finite(**values: float) -> None:
    """Refuses what is no number, or an infinite one."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            hint = "; YAML needs a point in 1.0e-6" if isinstance(value, str) else ""
            raise ValueError(f"{name}={value!r} must be a finite number{hint}")


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
