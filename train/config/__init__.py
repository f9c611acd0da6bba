"""What a run is: the config, its checks, and the recipe of each preset.

Loads no JAX; imports `convert.architecture`.  Used by everything in `train`.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from train.config.recipes import architecture, default, recipe
    from train.config.schema import (
        DataConfig,
        GanConfig,
        LossConfig,
        OptimConfig,
        TimeConfig,
        TrainConfig,
        config_differences,
        flatten_config,
    )

__all__ = [
    "DataConfig",
    "GanConfig",
    "LossConfig",
    "OptimConfig",
    "TimeConfig",
    "TrainConfig",
    "architecture",
    "config_differences",
    "default",
    "flatten_config",
    "recipe",
]
