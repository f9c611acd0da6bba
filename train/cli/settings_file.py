"""Reads settings from files and from `name=value`, and checks their names and types."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax_vae.convert.architecture import FAMILY
from flax_vae.convert.errors import ArgumentError, suggest
from flax_vae.convert.files import loads_object, read_bytes
from flax_vae.train.config import TrainConfig, parse_yaml, rename_settings, setting_types
from flax_vae.train.errors import TrainError
from flax_vae.train.run import HISTORY

_MAX_BYTES = 64 * 1024  # of a settings file

PRESET = "preset"  # a name in settings files that is not a field of `TrainConfig`


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a settings file, with any of the fields of a run's `config.json`, and `preset`.

    Args:
      path: File that ends in `.yaml`, `.yml` or `.json`.

    Raises:
      TrainError: If the file cannot be read, or a name in it is unknown; one line that names the file.
    """
    try:
        if path.suffix not in (".yaml", ".yml", ".json"):
            raise ArgumentError("its name must end in .yaml, .yml or .json")
        content = read_bytes(path, _MAX_BYTES)
        settings = loads_object(content) if path.suffix == ".json" else parse_yaml(content.decode("utf-8"))
        if settings is None:
            raise ArgumentError("it is empty; it should hold settings, such as steps: 1000")
        if not isinstance(settings, dict):
            raise ArgumentError(f"it holds a {type(settings).__name__}, names and values were expected")
        settings.pop(HISTORY, None)  # the history belongs to the other run
        settings = rename_settings(settings)
        check_names({name: value for name, value in settings.items() if name != PRESET})
        if not isinstance(settings.get(PRESET, ""), str):
            raise ArgumentError(f"preset={settings[PRESET]!r} must be a name", field="preset", value=settings[PRESET])
    except FileNotFoundError:
        raise TrainError(f"{path} does not exist; pass a settings file") from None
    except OSError as error:
        raise TrainError(f"{path}: {error.strerror or error}; pass a settings file") from error
    except UnicodeDecodeError:
        raise TrainError(f"{path}: the file is not UTF-8 text; pass a settings file") from None
    except ValueError as error:
        raise TrainError(f"{path}: {error}") from None
    return settings


def check_names(settings: Mapping[Any, Any]) -> None:
    """Checks that all settings are known, and their values of the right type.

    Raises:
      ValueError: If not; the message suggests the nearest name.
    """
    _check(settings, "", _known())


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of both; those of `above` override those of `below`."""
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _check(settings: Mapping[Any, Any], prefix: str, known: dict[str, Any]) -> None:
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if not isinstance(key, str) or name not in known:
            raise ArgumentError(_unknown(name))
        kind = known[name]
        if kind is dict:
            if not isinstance(value, Mapping):
                raise ArgumentError(
                    f"{name}={value!r} must be names and values, such as {_example(name)}", field=name, value=value
                )
            _check(value, f"{name}.", known)
        elif kind is bool and not isinstance(value, bool):
            raise ArgumentError(f"{name}={value!r} must be true or false", field=name, value=value)
        elif kind in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ArgumentError(f"{name}={value!r} must be a number", field=name, value=value)
        elif kind in (str, str | None) and not isinstance(value, str) and (value is not None or kind is str):
            raise ArgumentError(f"{name}={value!r} must be text; put it in quotes", field=name, value=value)


def _known() -> dict[str, Any]:
    """Returns the type of each dotted name; that of a nested part is `dict`."""
    known: dict[str, Any] = {}
    for name, kind in setting_types(TrainConfig).items():
        known[name] = kind
        if isinstance(kind, tuple):
            known[name] = dict
            known |= {f"{name}.{inner}": hint for inner, hint in setting_types(*kind).items()}
    return known | {f"model.{FAMILY}": str}


def _example(part: str) -> str:
    inner = next(name for name in _known() if name.startswith(f"{part}."))
    return f"{part}: {{{inner.partition('.')[2]}: ...}}"


def _unknown(name: str) -> str:
    return f"unknown setting {name!r}; {suggest(name, [*_known(), PRESET])}"
