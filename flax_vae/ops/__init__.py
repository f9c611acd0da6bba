"""Layers and functions that models compute with: convolution, normalisation, attention in tiles, compilation.

Imports JAX and Flax, and no model.  Used by the models and by inference.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.ops.attention_tiles import Tile, tiled_attention
    from flax_vae.ops.broadcasting import add, broadcast
    from flax_vae.ops.compilation import (
        CompileClock,
        cache_compilations,
        cache_for_command,
        compiler_options,
        release_compiler_memory,
        require_devices,
    )
    from flax_vae.ops.convolution import convolve
    from flax_vae.ops.group_norm import GroupNorm
    from flax_vae.ops.linear import Conv, Dense
    from flax_vae.ops.upsampling import upsample_and_convolve, upsample_padded
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "CompileClock",
    "Conv",
    "Dense",
    "GroupNorm",
    "Tile",
    "add",
    "broadcast",
    "cache_compilations",
    "cache_for_command",
    "compiler_options",
    "convolve",
    "release_compiler_memory",
    "require_devices",
    "tiled_attention",
    "upsample_and_convolve",
    "upsample_padded",
]
