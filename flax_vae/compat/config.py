"""Configurations in diffusers' keys."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from flax import linen as nn

from flax_vae.convert.architecture import AutoEncoderParams, require_posterior
from flax_vae.convert.errors import suggest
from flax_vae.convert.weights import read_diffusers_config

_NOT_KEYS = ("parent", "name", "dtype", "double_z")  # fields of the modules that no configuration holds


class FrozenConfig(Mapping[str, Any]):
    """A read-only mapping whose entries are attributes too, `config.scaling_factor`."""

    def __init__(self, fields: Mapping[str, Any]):
        self.__dict__["_fields"] = dict(fields)

    def __getitem__(self, key: str) -> Any:
        return self._fields[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})  # copying asks before there are any
        if name not in fields:
            raise AttributeError(f"the configuration has no {name!r}; {suggest(name, fields)}")
        return fields[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"the configuration is read-only; for a changed module: vae.clone({name}={value!r})")

    def __repr__(self) -> str:
        return f"FrozenConfig({self._fields})"


def keys_of(module: type[nn.Module]) -> list[str]:
    """Returns the fields of a module's class that are keys of its configuration."""
    return [field.name for field in dataclasses.fields(module) if field.name not in _NOT_KEYS]  # pyright: ignore[reportArgumentType]


def config_of(module: nn.Module) -> FrozenConfig:
    """Returns the configuration of a module."""
    return FrozenConfig({key: getattr(module, key) for key in keys_of(type(module))})


def freeze_lists(module: nn.Module) -> None:
    """Turns lists, which configurations hold, into tuples: linen's modules are hashable."""
    for key in keys_of(type(module)):
        if isinstance(value := getattr(module, key), list):
            object.__setattr__(module, key, tuple(value))


def params_of(fields: Mapping[str, Any]) -> AutoEncoderParams:
    """Returns the architecture of a configuration in diffusers' keys.

    Raises:
      ConversionError: If this package cannot express it; the message names the key and the value.
    """
    return require_posterior(read_diffusers_config({"_class_name": "FlaxAutoencoderKL", **fields}))
