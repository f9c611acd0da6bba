"""The settings of a run, their checks, and the recipe of each preset.

Loads no JAX; imports `flax_vae.convert.architecture`.  Used by everything in `train`.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.train.config.parts import changes_latents, trained_paths
    from flax_vae.train.config.recipes import (
        about_recipes,
        architecture,
        default,
        fine_tuning_recipe,
        preset_names,
        recipe,
        with_teacher,
    )
    from flax_vae.train.config.reduced_latents import SCALES, reduced_size
    from flax_vae.train.config.schema import (
        RENAMED,
        DataConfig,
        GanConfig,
        LatentConfig,
        LossConfig,
        OptimConfig,
        TimeConfig,
        TrainConfig,
        ValidationConfig,
        config_differences,
        flatten_config,
        rename_settings,
        setting_types,
    )
    from flax_vae.train.config.yaml_text import format_yaml, parse_yaml
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "RENAMED",
    "SCALES",
    "DataConfig",
    "GanConfig",
    "LatentConfig",
    "LossConfig",
    "OptimConfig",
    "TimeConfig",
    "TrainConfig",
    "ValidationConfig",
    "about_recipes",
    "architecture",
    "changes_latents",
    "config_differences",
    "default",
    "fine_tuning_recipe",
    "flatten_config",
    "format_yaml",
    "parse_yaml",
    "preset_names",
    "recipe",
    "reduced_size",
    "rename_settings",
    "setting_types",
    "trained_paths",
    "with_teacher",
]
